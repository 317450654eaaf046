/* The library that ONNX Runtime loads: it registers the operators of operators.c and reads their tensors and attributes. */
#include "operators.h"
#include "processor.h"

#include <float.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const Path *path;

OrtStatus *wrong(const OrtApi *api, const char *name, const char *said, ...) {
    char text[800], what[700];
    va_list words;
    va_start(words, said);
    vsnprintf(what, sizeof what, said, words);
    va_end(words);
    snprintf(text, sizeof text, "pruneonce.%s: expected %s. Write the file again: pruneonce accelerate.", name, what);
    return CALL(api, 0, CreateStatus)(ORT_INVALID_ARGUMENT, text);
}

OrtStatus *no_memory(const OrtApi *api) {
    return CALL(api, 0, CreateStatus)(ORT_FAIL, "pruneonce: expected more memory, found none.");
}

Text axes(const Tensor *tensor) {
    Text text = {"["};
    for (size_t i = 0, used = 1; i < tensor->rank; i++) {
        const char *comma = i ? ", " : "";
        used += (size_t)snprintf(text.text + used, sizeof text.text - used, "%s%lld", comma, (long long)tensor->dims[i]);
    }
    strcat(text.text, "]");
    return text;
}

static OrtStatus *read_tensor(const OrtApi *api, const char *name, const OrtValue *value, Tensor *out) {
    OrtTensorTypeAndShapeInfo *info;
    TRY(CALL(api, 65, GetTensorTypeAndShape)(value, &info));
    OrtStatus *status = CALL(api, 60, GetTensorElementType)(info, &out->type);
    if (!status) status = CALL(api, 61, GetDimensionsCount)(info, &out->rank);
    if (!status && out->rank <= MOST_AXES) status = CALL(api, 62, GetDimensions)(info, out->dims, out->rank);
    CALL(api, 99, ReleaseTensorTypeAndShapeInfo)(info);
    if (status) return status;
    if (out->rank > MOST_AXES) return wrong(api, name, "tensors of at most %d axes, found %zu", MOST_AXES, out->rank);
    out->count = 1;
    for (size_t i = 0; i < out->rank; i++) out->count *= (size_t)out->dims[i];
    return CALL(api, 51, GetTensorMutableData)((OrtValue *)value, &out->data);
}

OrtStatus *integer(const Kernel *kernel, const OrtKernelInfo *info, const char *name, int64_t least, int64_t most, int64_t *out) {
    TRY(CALL(kernel->api, 86, KernelInfoGetAttribute_int64)(info, name, out));
    if (*out >= least && *out <= most) return NULL;
    return wrong(kernel->api, kernel->operator->name, "%s from %lld to %lld, found %lld", name, (long long)least, (long long)most,
                 (long long)*out);
}

OrtStatus *number(const Kernel *kernel, const OrtKernelInfo *info, const char *name, float least, float *out) {
    TRY(CALL(kernel->api, 85, KernelInfoGetAttribute_float)(info, name, out));
    if (*out >= least && *out <= FLT_MAX) return NULL;
    return wrong(kernel->api, kernel->operator->name, "%s from %g to %g, found %g", name, least, FLT_MAX, *out);
}

OrtStatus *grid(const Kernel *kernel, const OrtKernelInfo *info, Grid *out) {
    int64_t zero_point;
    TRY(number(kernel, info, "output_scale", FLT_MIN, &out->scale)); /* its inverse is finite */
    TRY(integer(kernel, info, "output_zero_point", 0, 255, &zero_point));
    out->zero_point = (int32_t)zero_point;
    return NULL;
}

OrtStatus *constant(const Kernel *kernel, const OrtKernelInfo *info, size_t index, size_t rank, Tensor *out) {
    const OrtApi *api = kernel->api;
    const Operator *operator = kernel->operator;
    int is_constant = 0;
    const OrtValue *value = NULL;
    Text found = {"a value that is no constant"};
    TRY(CALL(api, 249, KernelInfoGetConstantInput_tensor)(info, index, &is_constant, &value));
    if (is_constant && value) {
        TRY(read_tensor(api, operator->name, value, out));
        if (out->type == operator->input[index].type && out->rank == rank) return NULL;
        found = axes(out);
    }
    return wrong(api, operator->name, "input %zu as a constant of %zu axes, found %s", index, rank, found.text);
}

OrtStatus *input(const Call *call, size_t index, Tensor *out) {
    const OrtValue *value = NULL;
    *out = (Tensor){0};
    TRY(CALL(call->api, 90, KernelContext_GetInput)(call->context, index, &value));
    return value ? read_tensor(call->api, call->name, value, out) : NULL;
}

OrtStatus *tiled_input(const Call *call, size_t index, size_t channels, Tensor *out) {
    TRY(input(call, index, out));
    if (!out->rank && !out->data) return NULL; /* an optional input that is not there */
    int fits = out->rank == 2 && out->dims[0] % LANES == 0 && out->dims[1] > 0;
    if (fits && (!channels || (size_t)out->dims[1] == channels)) return NULL;
    char wanted[32] = "channels";
    if (channels) snprintf(wanted, sizeof wanted, "%zu channels", channels);
    return wrong(call->api, call->name, "input %zu in tiles, [tokens in sixteens, %s], found %s", index, wanted, axes(out).text);
}

OrtStatus *output(const Call *call, size_t index, const int64_t *dims, size_t rank, Tensor *out) {
    OrtValue *value = NULL;
    *out = (Tensor){0};
    TRY(CALL(call->api, 91, KernelContext_GetOutput)(call->context, index, dims, rank, &value));
    return value ? read_tensor(call->api, call->name, value, out) : NULL;
}

OrtStatus *parallel(const Call *call, void (*run)(void *work, size_t index), size_t total, void *work) {
    return total ? CALL(call->api, 274, KernelContext_ParallelFor)(call->context, run, total, 0, work) : NULL;
}

/* ---- ONNX Runtime's view of an operator ---- */

static const Operator *of(const OrtCustomOp *op) { return (const Operator *)op; }

static const char *get_name(const OrtCustomOp *op) { return of(op)->name; }
static const char *get_provider(const OrtCustomOp *op) { return (void)op, "CPUExecutionProvider"; }
static int get_input_type(const OrtCustomOp *op, size_t i) { return of(op)->input[i].type; }
static size_t get_inputs(const OrtCustomOp *op) { return of(op)->inputs; }
static int get_output_type(const OrtCustomOp *op, size_t i) { return of(op)->output[i].type; }
static size_t get_outputs(const OrtCustomOp *op) { return of(op)->outputs; }
static int get_input_need(const OrtCustomOp *op, size_t i) { return of(op)->input[i].need; }
static int get_output_need(const OrtCustomOp *op, size_t i) { return of(op)->output[i].need; }
static int get_memory(const OrtCustomOp *op, size_t i) { return (void)op, (void)i, 0; }
static int get_one(const OrtCustomOp *op) { return (void)op, 1; }
static int get_newest(const OrtCustomOp *op) { return (void)op, INT32_MAX; }

static void destroy(void *kernel) {
    const Operator *operator = ((Kernel *)kernel)->operator;
    if (operator->release) operator->release(kernel);
    free(kernel);
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **out) {
    Kernel *kernel = calloc(1, of(op)->size);
    if (!kernel) return no_memory(api);
    *kernel = (Kernel){api, of(op)};
    OrtStatus *status = of(op)->create ? of(op)->create(kernel, info) : NULL;
    if (status) destroy(kernel);
    *out = status ? NULL : kernel;
    return status;
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context) {
    const Kernel *k = kernel;
    return k->operator->compute(kernel, &(Call){k->api, context, k->operator->name});
}

static const OrtCustomOp BASE = {
    .version = ORT_API_VERSION,
    .GetName = get_name,
    .GetExecutionProviderType = get_provider,
    .GetInputType = get_input_type,
    .GetInputTypeCount = get_inputs,
    .GetOutputType = get_output_type,
    .GetOutputTypeCount = get_outputs,
    .KernelDestroy = destroy,
    .GetInputCharacteristic = get_input_need,
    .GetOutputCharacteristic = get_output_need,
    .GetInputMemoryType = get_memory,
    .GetVariadicInputMinArity = get_one,
    .GetVariadicInputHomogeneity = get_one,
    .GetVariadicOutputMinArity = get_one,
    .GetVariadicOutputHomogeneity = get_one,
    .CreateKernelV2 = create,
    .KernelComputeV2 = compute,
    .GetStartVersion = get_one,
    .GetEndVersion = get_newest,
};

__attribute__((constructor)) static void fill(void) {
    for (size_t i = 0; i < operator_count; i++) operators[i].base = BASE;
}

static OrtStatus *no_path(const OrtApi *api, const char *name) {
    char text[400], names[100], found[80];
    path_names(names, sizeof names);
    snprintf(found, sizeof found, "%s", name);
    for (char *c = found; *c; c++) *c = *c >= ' ' && *c <= '~' ? *c : '?'; /* a message is UTF-8, also where this is not */
    snprintf(text, sizeof text, "PRUNEONCE_PATH: expected a path that this processor runs (%s), found '%s'. Unset it, and the "
             "fastest one is taken.", names, found);
    return CALL(api, 0, CreateStatus)(ORT_INVALID_ARGUMENT, text);
}

/* Registers the operators for the sessions of `options`. Fails, with a message, if the ONNX Runtime is older than 1.17, or if
 * the environment's PRUNEONCE_PATH names no path that this processor can run. The domain lives as long as the process. */
__attribute__((visibility("default"))) OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
    const OrtApi *api = base->GetApi(ORT_API_VERSION);
    if (!api) {
        const OrtApi *oldest = base->GetApi(1);
        return CALL(oldest, 0, CreateStatus)(ORT_FAIL, "pruneonce: expected ONNX Runtime 1.17 or newer, found an older one.");
    }
    const char *name = getenv("PRUNEONCE_PATH");
    const Path *chosen = name ? path_named(name) : fastest_path();
    if (!chosen) return no_path(api, name);
    __atomic_store_n(&path, chosen, __ATOMIC_RELAXED);
    OrtCustomOpDomain *domain; /* ONNX Runtime says when it may be released to nobody; so these few bytes stay */
    TRY(CALL(api, 26, CreateCustomOpDomain)("pruneonce", &domain));
    for (size_t i = 0; i < operator_count; i++) TRY(CALL(api, 27, CustomOpDomain_Add)(domain, &operators[i]));
    return CALL(api, 28, AddCustomOpDomain)(options, domain);
}
