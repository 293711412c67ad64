/* Includes the file SELF twice, for bfloat16 and for float32: T is the type of its tensors, SUFFIX ends the names of its
   functions, WIDEN makes a T a float and NARROW a float a T. */

#define SUFFIX _bf16
#define T bf16
#define WIDEN widen_bf16
#define NARROW narrow_bf16
#include SELF
#undef SUFFIX
#undef T
#undef WIDEN
#undef NARROW

#define SUFFIX _f32
#define T float
#define WIDEN widen_f32
#define NARROW narrow_f32
#include SELF
