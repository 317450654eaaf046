#define _GNU_SOURCE /* syscall */
#include "processor.h"

#include <stdio.h>
#include <string.h>

#ifdef __x86_64__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Compilers differ in the names that __builtin_cpu_supports knows, so the processor is asked: cpuid, leaf 7. The operating
 * system must save the wide registers too: xgetbv. */
static unsigned saved_registers(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return 0;
    __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return a;
}

static int has(const char *name) {
    unsigned a, b, c, d, b1, c1, a2 = 0, b2, c2, d2, registers = saved_registers();
    if (!__get_cpuid(1, &a, &b1, &c1, &d) || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    if (a) __get_cpuid_count(7, 1, &a2, &b2, &c2, &d2);
    int avx2 = (registers & 0x6) == 0x6 && c1 >> 12 & 1 && b >> 5 & 1;                       /* with fused multiply-add */
    int avx512 = avx2 && (registers & 0xe6) == 0xe6 && (b & 0xc0030000) == 0xc0030000;       /* f, dq, bw, vl */
    if (!strcmp(name, "avx2")) return avx2;
    if (!strcmp(name, "avxvnni")) return avx2 && a2 >> 4 & 1;
    if (!strcmp(name, "avx512vnni")) return avx512 && c >> 11 & 1;
    return 1;
}

/* ONNX Runtime asks Linux for the registers of AMX, and does without if it is refused. */
static int has_amx(void) {
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    unsigned a, b, c, d;
    return has("avx512vnni") && __get_cpuid_count(7, 0, &a, &b, &c, &d) && d >> 25 & 1 &&
           !syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA);
}

static const Path *const paths[] = {&path_avx512vnni, &path_avxvnni, &path_avx2, &path_portable};
#else
static int has(const char *name) { return (void)name, 1; }
static int has_amx(void) { return 0; }
static const Path *const paths[] = {&path_portable};
#endif

const Path *path_named(const char *name) {
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
        if (!strcmp(paths[i]->name, name)) return has(name) ? paths[i] : NULL;
    return NULL;
}

void path_names(char *out, size_t size) {
    int used = 0;
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
        if (has(paths[i]->name)) used += snprintf(out + used, size - (size_t)used, "%s%s", used ? ", " : "", paths[i]->name);
}

const Path *fastest_path(void) {
    const Path *const *p = paths;
    while (!has((*p)->name)) p++;
    return *p;
}

__attribute__((visibility("default"))) const char *pruneonce_processor(void) {
    return has_amx() ? "avx512vnni amx" : fastest_path()->name;
}
