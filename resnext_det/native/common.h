/* Elements in bf16 or fp32, computed on in fp32. Every loop over channels is written so that a
   compiler turns it into vector instructions. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* A type is known where a function is inlined: `is_half` is a constant there. */
INLINE float load(const void *from, int64_t at, int is_half) {
    if (!is_half) return ((const float *)from)[at];
    uint32_t bits = (uint32_t)((const uint16_t *)from)[at] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* To the nearest, ties to even, as torch rounds; not a number stays one. */
INLINE uint16_t to_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)(value == value ? rounded : 0x7fc0);
}

INLINE void store(void *to, int64_t at, float value, int is_half) {
    if (is_half) ((uint16_t *)to)[at] = to_half(value);
    else ((float *)to)[at] = value;
}

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
