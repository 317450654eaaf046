/* Placeholder. */
#define JOIN(a, b) a##b
#define NAME(a, b) JOIN(a, b)
int NAME(path_, PATH)(void);
int NAME(path_, PATH)(void) { return 1; }
