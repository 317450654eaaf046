/* Preloaded into a process, this hides instructions of its processor: SEEMING is what the processor seems to be, one of
 * avx512vnni (AMX is hidden), avxvnni (AVX-512 too), avx2 (AVX-VNNI too).
 *
 * Linux lets `cpuid` fault on processors that can. The handler asks the processor, clears bits, and goes on after the
 * instruction. Threads inherit this; `exec` ends it. Bits: Intel's manual, volume 2, CPUID, leaf 7.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { SET_CPUID = 0x1012, FAULTS = 0, ANSWERS = 1 };

static int avx512, avxvnni;

static void answer(int signal, siginfo_t *info, void *context) {
    (void)info;
    greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *at = (const uint8_t *)r[REG_RIP];
    if (at[0] != 0x0f || at[1] != 0xa2) { /* another fault: end as without this handler */
        sigaction(signal, &(struct sigaction){.sa_handler = SIG_DFL}, NULL);
        return;
    }
    uint32_t leaf = (uint32_t)r[REG_RAX], part = (uint32_t)r[REG_RCX], a, b, c, d;
    syscall(SYS_arch_prctl, SET_CPUID, ANSWERS);
    __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(leaf), "c"(part));
    syscall(SYS_arch_prctl, SET_CPUID, FAULTS);
    if (leaf == 7 && part == 0) {
        d &= ~UINT32_C(0x03400000); /* amx_bf16, amx_tile, amx_int8 */
        if (!avx512) b &= ~UINT32_C(0xdc230000), c &= ~UINT32_C(0x00005842), d &= ~UINT32_C(0x0080010c);
    }
    if (leaf == 7 && part == 1) {
        a &= ~UINT32_C(0x00200000); /* amx_fp16 */
        if (!avx512) a &= ~UINT32_C(0x00000020);
        if (!avxvnni) a &= ~UINT32_C(0x00000010);
    }
    r[REG_RAX] = a, r[REG_RBX] = b, r[REG_RCX] = c, r[REG_RDX] = d;
    r[REG_RIP] += 2;
}

__attribute__((constructor)) static void begin(void) {
    const char *name = getenv("SEEMING");
    if (!name) return;
    avx512 = !strcmp(name, "avx512vnni"), avxvnni = strcmp(name, "avx2");
    sigaction(SIGSEGV, &(struct sigaction){.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER}, NULL);
    if (syscall(SYS_arch_prctl, SET_CPUID, FAULTS)) _exit(75);
}
