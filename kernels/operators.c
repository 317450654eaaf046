/* The operators for ONNX Runtime, domain "pruneonce".
 *
 *   SparseLinear   y = scale (x - zero_point) w^T + bias
 *     inputs   x uint8[..., K];  constants w int8[N, K], scale float[N], bias float[N]
 *     attribute zero_point: of x
 *     output   y float[..., N]
 */
#include "onnxruntime_abi.h"
#include "sparse.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define API(slot, name) (api->slots[slot].name)
#define EXPORT __attribute__((visibility("default")))
#define TRY(call)                        \
    do {                                 \
        OrtStatus *status_ = (call);     \
        if (status_) return status_;     \
    } while (0)

typedef struct {
    const OrtApi *api;
    Sparse sparse;
    int64_t zero_point;
    float *scale, *bias;
} Linear;

static OrtStatus *wrong(const OrtApi *api, const char *expected) {
    char text[200];
    snprintf(text, sizeof text, "pruneonce.SparseLinear: expected %s. Make the file again with `pruneonce accelerate`.", expected);
    return API(0, CreateStatus)(ORT_INVALID_ARGUMENT, text);
}

typedef struct {
    int type;
    size_t rank, count;
    int64_t dims[8];
    void *data;
} Tensor;

static OrtStatus *tensor(const OrtApi *api, const OrtValue *value, Tensor *out) {
    OrtTensorTypeAndShapeInfo *info;
    TRY(API(65, GetTensorTypeAndShape)(value, &info));
    OrtStatus *status = API(60, GetTensorElementType)(info, &out->type);
    if (!status) status = API(61, GetDimensionsCount)(info, &out->rank);
    if (!status && out->rank <= 8) status = API(62, GetDimensions)(info, out->dims, out->rank);
    API(99, ReleaseTensorTypeAndShapeInfo)(info);
    if (status) return status;
    if (out->rank > 8) return wrong(api, "at most 8 axes");
    out->count = 1;
    for (size_t i = 0; i < out->rank; i++) out->count *= (size_t)out->dims[i];
    return API(51, GetTensorMutableData)((OrtValue *)value, &out->data);
}

static OrtStatus *constant(const OrtApi *api, const OrtKernelInfo *info, size_t index, int type, size_t rank, const char *expected,
                           Tensor *out) {
    int is_constant = 0;
    const OrtValue *value = NULL;
    TRY(API(249, KernelInfoGetConstantInput_tensor)(info, index, &is_constant, &value));
    if (!is_constant || !value) return wrong(api, expected);
    TRY(tensor(api, value, out));
    return out->type == type && out->rank == rank ? NULL : wrong(api, expected);
}

static void destroy(void *kernel) {
    Linear *linear = kernel;
    if (!linear) return;
    sparse_free(&linear->sparse);
    free(linear->scale), free(linear->bias), free(linear);
}

static OrtStatus *fill(Linear *linear, const OrtKernelInfo *info) {
    const OrtApi *api = linear->api;
    Tensor w, scale, bias;
    TRY(constant(api, info, 1, ORT_INT8, 2, "a constant int8[N, K] as weight", &w));
    TRY(constant(api, info, 2, ORT_FLOAT, 1, "a constant float[N] as scale", &scale));
    TRY(constant(api, info, 3, ORT_FLOAT, 1, "a constant float[N] as bias", &bias));
    size_t outputs = (size_t)w.dims[0], inputs = (size_t)w.dims[1];
    if (scale.count != outputs || bias.count != outputs) return wrong(api, "scale and bias of one number for each output");
    TRY(API(86, KernelInfoGetAttribute_int64)(info, "zero_point", &linear->zero_point));
    if (linear->zero_point < 0 || linear->zero_point > 255) return wrong(api, "a zero_point from 0 to 255");
    if (sparse_make(&linear->sparse, w.data, outputs, inputs)) return API(0, CreateStatus)(ORT_FAIL, "out of memory");
    linear->scale = malloc(outputs * sizeof(float) + 1), linear->bias = malloc(outputs * sizeof(float) + 1);
    if (!linear->scale || !linear->bias) return API(0, CreateStatus)(ORT_FAIL, "out of memory");
    memcpy(linear->scale, scale.data, outputs * sizeof(float)), memcpy(linear->bias, bias.data, outputs * sizeof(float));
    return NULL;
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **kernel) {
    (void)op;
    Linear *linear = calloc(1, sizeof *linear);
    if (!linear) return API(0, CreateStatus)(ORT_FAIL, "out of memory");
    linear->api = api;
    OrtStatus *status = fill(linear, info);
    if (status) destroy(linear), linear = NULL;
    *kernel = linear;
    return status;
}

enum { PARTS = 8 }; /* of the outputs of a tile: pieces of work for the session's threads */

typedef struct {
    const Linear *linear;
    const uint8_t *x;
    float *y;
    size_t tokens, tiles;
    uint32_t *packed;
    int32_t *acc;
    SparseMultiply *multiply;
} Work;

static void pack(void *data, size_t tile) {
    Work *work = data;
    const Sparse *s = &work->linear->sparse;
    sparse_pack(work->packed + tile * s->groups * TOKENS, work->x, work->tokens, s->inputs, tile * TOKENS);
}

static void multiply(void *data, size_t index) {
    Work *work = data;
    const Linear *linear = work->linear;
    const Sparse *s = &linear->sparse;
    size_t tile = index / PARTS, part = index % PARTS;
    size_t begin = s->outputs * part / PARTS, end = s->outputs * (part + 1) / PARTS;
    int32_t *acc = work->acc + tile * s->outputs * TOKENS;
    work->multiply(s, work->packed + tile * s->groups * TOKENS, acc, begin, end);
    for (size_t t = 0; t < TOKENS && tile * TOKENS + t < work->tokens; t++) {
        float *y = work->y + (tile * TOKENS + t) * s->outputs;
        for (size_t n = begin; n < end; n++)
            y[n] = (float)(acc[n * TOKENS + t] - (int32_t)linear->zero_point * s->sums[n]) * linear->scale[n] + linear->bias[n];
    }
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context) {
    const Linear *linear = kernel;
    const OrtApi *api = linear->api;
    const Sparse *s = &linear->sparse;
    const OrtValue *input;
    OrtValue *output;
    Tensor x, y;
    TRY(API(90, KernelContext_GetInput)(context, 0, &input));
    TRY(tensor(api, input, &x));
    if (x.type != ORT_UINT8 || !x.rank || (size_t)x.dims[x.rank - 1] != s->inputs) return wrong(api, "x as uint8[..., K]");
    size_t tokens = s->inputs ? x.count / s->inputs : 0;
    x.dims[x.rank - 1] = (int64_t)s->outputs;
    TRY(API(91, KernelContext_GetOutput)(context, 0, x.dims, x.rank, &output));
    TRY(tensor(api, output, &y));
    if (!tokens) return NULL;
    Work work = {linear, x.data, y.data, tokens, (tokens + TOKENS - 1) / TOKENS, NULL, NULL, sparse_best()};
    work.packed = aligned_alloc(64, work.tiles * s->groups * TOKENS * sizeof *work.packed);
    work.acc = aligned_alloc(64, work.tiles * s->outputs * TOKENS * sizeof *work.acc);
    OrtStatus *status = NULL;
    if (!work.packed || !work.acc) status = API(0, CreateStatus)(ORT_FAIL, "out of memory");
    if (!status) status = API(274, KernelContext_ParallelFor)(context, pack, work.tiles, 0, &work);
    if (!status) status = API(274, KernelContext_ParallelFor)(context, multiply, work.tiles * PARTS, 0, &work);
    free(work.packed), free(work.acc);
    return status;
}

static const char *name(const OrtCustomOp *op) { return (void)op, "SparseLinear"; }
static const char *provider(const OrtCustomOp *op) { return (void)op, "CPUExecutionProvider"; }
static int input_type(const OrtCustomOp *op, size_t i) { return (void)op, (int[]){ORT_UINT8, ORT_INT8, ORT_FLOAT, ORT_FLOAT}[i]; }
static size_t inputs(const OrtCustomOp *op) { return (void)op, 4; }
static int output_type(const OrtCustomOp *op, size_t i) { return (void)op, (void)i, ORT_FLOAT; }
static size_t outputs(const OrtCustomOp *op) { return (void)op, 1; }
static int required(const OrtCustomOp *op, size_t i) { return (void)op, (void)i, 0; }
static int memory(const OrtCustomOp *op, size_t i) { return (void)op, (void)i, 0; }
static int one(const OrtCustomOp *op) { return (void)op, 1; }
static int newest(const OrtCustomOp *op) { return (void)op, 0x7fffffff; }

static const OrtCustomOp LINEAR = {
    .version = ORT_API_VERSION, .GetName = name, .GetExecutionProviderType = provider, .GetInputType = input_type,
    .GetInputTypeCount = inputs, .GetOutputType = output_type, .GetOutputTypeCount = outputs, .KernelDestroy = destroy,
    .GetInputCharacteristic = required, .GetOutputCharacteristic = required, .GetInputMemoryType = memory,
    .GetVariadicInputMinArity = one, .GetVariadicInputHomogeneity = one, .GetVariadicOutputMinArity = one,
    .GetVariadicOutputHomogeneity = one, .CreateKernelV2 = create, .KernelComputeV2 = compute, .GetStartVersion = one,
    .GetEndVersion = newest,
};

EXPORT OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
    const OrtApi *api = base->GetApi(ORT_API_VERSION);
    if (!api) return NULL; /* an older runtime: it has no slot to report it by */
    OrtCustomOpDomain *domain;
    TRY(API(26, CreateCustomOpDomain)("pruneonce", &domain));
    TRY(API(27, CustomOpDomain_Add)(domain, &LINEAR));
    return API(28, AddCustomOpDomain)(options, domain);
}
