/* Which of the compiled paths this processor can run. */
#ifndef PRUNEONCE_PROCESSOR_H
#define PRUNEONCE_PROCESSOR_H

#include "path.h"

/* The fastest path of this processor; NULL never. */
const Path *fastest_path(void);
/* The path of that name if it was compiled and this processor can run it, else NULL. */
const Path *path_named(const char *name);
/* The paths that this processor can run, the fastest one first: "avx2, portable". */
void path_names(char *out, size_t size);
/* "PATH", or "PATH amx" where ONNX Runtime's own integer products use AMX. The library exports it for Python. */
const char *pruneonce_processor(void);

#endif
