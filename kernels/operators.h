/* What the operators share: tensors of ONNX Runtime, errors, and the description of an operator. */
#ifndef PRUNEONCE_OPERATORS_H
#define PRUNEONCE_OPERATORS_H

#include "onnxruntime_abi.h"
#include "path.h"

#define CALL(api, slot, name) ((api)->slots[slot].name)
#define TRY(call)                         \
    do {                                  \
        OrtStatus *status_ = (call);      \
        if (status_) return status_;      \
    } while (0)

enum { MOST_AXES = 8, MOST_INPUTS = 8, MOST_OUTPUTS = 2 };
enum { REQUIRED = 0, OPTIONAL = 1 };

typedef struct {
    int type;
    size_t rank, count; /* axes, elements */
    int64_t dims[MOST_AXES];
    void *data;
} Tensor;

/* A few words for an error. */
typedef struct {
    char text[192];
} Text;

Text axes(const Tensor *tensor); /* "[3, 16, 8]" */

/* The one call of a kernel that is running. */
typedef struct {
    const OrtApi *api;
    OrtKernelContext *context;
    const char *name; /* of the operator, for its errors */
} Call;

typedef struct {
    OrtCustomOp base; /* first: ONNX Runtime's pointer to it is a pointer to this */
    const char *name;
    size_t inputs, outputs, size; /* size: of the kernel's struct, which begins with a `Kernel` */
    struct { int type, need; } input[MOST_INPUTS], output[MOST_OUTPUTS];
    OrtStatus *(*create)(void *kernel, const OrtKernelInfo *info);
    OrtStatus *(*compute)(const void *kernel, const Call *call);
    void (*release)(void *kernel);
} Operator;

typedef struct {
    const OrtApi *api;
    const Operator *operator;
} Kernel;

/* "pruneonce.NAME: expected ..., found ...": both are `said`, a format. */
OrtStatus *wrong(const OrtApi *api, const char *name, const char *said, ...);
OrtStatus *no_memory(const OrtApi *api);

OrtStatus *integer(const Kernel *kernel, const OrtKernelInfo *info, const char *name, int64_t least, int64_t most, int64_t *out);
OrtStatus *number(const Kernel *kernel, const OrtKernelInfo *info, const char *name, float least, float *out); /* finite */
OrtStatus *grid(const Kernel *kernel, const OrtKernelInfo *info, Grid *out); /* attributes output_scale, output_zero_point */
OrtStatus *constant(const Kernel *kernel, const OrtKernelInfo *info, size_t index, size_t rank, Tensor *out);

OrtStatus *input(const Call *call, size_t index, Tensor *out);
/* An input in tiles, [padded, channels], with its data checked to be as large as that. */
OrtStatus *tiled_input(const Call *call, size_t index, size_t channels, Tensor *out);
/* `out->data` is NULL for an optional output that the model does not use. */
OrtStatus *output(const Call *call, size_t index, const int64_t *dims, size_t rank, Tensor *out);
OrtStatus *parallel(const Call *call, void (*run)(void *work, size_t index), size_t total, void *work);

extern Operator operators[];
extern const size_t operator_count;
extern const Path *path; /* of this processor, or the one that the environment names; set when the library is registered */

#endif
