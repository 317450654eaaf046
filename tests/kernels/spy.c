/* A library between ONNX Runtime and the kernels: it hands them an OrtApi whose slots count their calls.
 *
 * It changes the kernels' operators, so it needs a copy of their library that nobody else loads.
 * The environment's PRUNEONCE_SPIED names the kernels' library. Call number `spy_refuse`, where it is not 0, is refused: it
 * fails with a status, if its slot returns one. */
#define _GNU_SOURCE /* RTLD_NOW */
#include "onnxruntime_abi.h"

#include <dlfcn.h>
#include <stdlib.h>

__attribute__((visibility("default"))) int spy_counts[275], spy_refuse, spy_calls;

static const OrtApiBase *base;
static const OrtApi *real;
static OrtApi spied;

static OrtStatus *refused(int slot) {
    __atomic_add_fetch(&spy_counts[slot], 1, __ATOMIC_RELAXED);
    int call = __atomic_add_fetch(&spy_calls, 1, __ATOMIC_RELAXED);
    return slot && call == spy_refuse ? real->slots[0].CreateStatus(ORT_FAIL, "refused by the spy") : NULL;
}

#define SPY(slot, name, parameters, arguments)                          \
    static OrtStatus *spy_##name parameters {                           \
        OrtStatus *status = refused(slot);                              \
        return status ? status : real->slots[slot].name arguments;      \
    }

SPY(0, CreateStatus, (int code, const char *message), (code, message))
SPY(26, CreateCustomOpDomain, (const char *name, OrtCustomOpDomain **out), (name, out))
SPY(28, AddCustomOpDomain, (OrtSessionOptions *options, OrtCustomOpDomain *domain), (options, domain))
SPY(51, GetTensorMutableData, (OrtValue *value, void **out), (value, out))
SPY(60, GetTensorElementType, (const OrtTensorTypeAndShapeInfo *info, int *out), (info, out))
SPY(61, GetDimensionsCount, (const OrtTensorTypeAndShapeInfo *info, size_t *out), (info, out))
SPY(62, GetDimensions, (const OrtTensorTypeAndShapeInfo *info, int64_t *out, size_t count), (info, out, count))
SPY(65, GetTensorTypeAndShape, (const OrtValue *value, OrtTensorTypeAndShapeInfo **out), (value, out))
SPY(85, KernelInfoGetAttribute_float, (const OrtKernelInfo *info, const char *name, float *out), (info, name, out))
SPY(86, KernelInfoGetAttribute_int64, (const OrtKernelInfo *info, const char *name, int64_t *out), (info, name, out))
SPY(90, KernelContext_GetInput, (const OrtKernelContext *context, size_t index, const OrtValue **out), (context, index, out))
SPY(91, KernelContext_GetOutput,
    (OrtKernelContext *context, size_t index, const int64_t *dims, size_t count, OrtValue **out),
    (context, index, dims, count, out))
SPY(249, KernelInfoGetConstantInput_tensor,
    (const OrtKernelInfo *info, size_t index, int *is_constant, const OrtValue **out), (info, index, is_constant, out))
SPY(274, KernelContext_ParallelFor,
    (const OrtKernelContext *context, void (*run)(void *data, size_t index), size_t total, size_t batches, void *data),
    (context, run, total, batches, data))

/* ONNX Runtime hands its own OrtApi to what makes a kernel. */
static OrtStatus *(*create)(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **kernel);

static OrtStatus *spy_create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **kernel) {
    return (void)api, create(op, &spied, info, kernel);
}

static OrtStatus *spy_CustomOpDomain_Add(OrtCustomOpDomain *domain, const void *given) {
    OrtCustomOp *op = (OrtCustomOp *)given;
    if (op->CreateKernelV2 != spy_create) create = op->CreateKernelV2, op->CreateKernelV2 = spy_create;
    OrtStatus *status = refused(27);
    return status ? status : real->slots[27].CustomOpDomain_Add(domain, op);
}

static void spy_ReleaseTensorTypeAndShapeInfo(OrtTensorTypeAndShapeInfo *info) {
    __atomic_add_fetch(&spy_counts[99], 1, __ATOMIC_RELAXED);
    real->slots[99].ReleaseTensorTypeAndShapeInfo(info);
}

/* Only the slots above are there: a call of another one ends the process. */
static const OrtApi *get_api(uint32_t version) {
    if (!(real = base->GetApi(version))) return NULL;
#define SET(slot, name) spied.slots[slot].name = spy_##name
    SET(0, CreateStatus), SET(26, CreateCustomOpDomain), SET(27, CustomOpDomain_Add), SET(28, AddCustomOpDomain);
    SET(51, GetTensorMutableData), SET(60, GetTensorElementType), SET(61, GetDimensionsCount), SET(62, GetDimensions);
    SET(65, GetTensorTypeAndShape), SET(85, KernelInfoGetAttribute_float), SET(86, KernelInfoGetAttribute_int64);
    SET(90, KernelContext_GetInput), SET(91, KernelContext_GetOutput), SET(99, ReleaseTensorTypeAndShapeInfo);
    SET(249, KernelInfoGetConstantInput_tensor), SET(274, KernelContext_ParallelFor);
    return &spied;
}

__attribute__((visibility("default"))) OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *given) {
    static const OrtApiBase between = {get_api, NULL};
    base = given;
    void *kernels = dlopen(getenv("PRUNEONCE_SPIED"), RTLD_NOW | RTLD_LOCAL);
    OrtStatus *(*registered)(OrtSessionOptions *, const OrtApiBase *);
    if (!kernels) return given->GetApi(1)->slots[0].CreateStatus(ORT_FAIL, dlerror());
    *(void **)&registered = dlsym(kernels, "RegisterCustomOps");
    return registered(options, &between);
}
