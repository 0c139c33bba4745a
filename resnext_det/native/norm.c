/* Batch norm in training with the shortcut that is added and the ReLU: two passes over memory
   forward, two backward. Tensors are rows (pixels) of `channels` values: channels_last.

   Sums are taken over blocks of rows in fp32, about the block's first row so that a large mean
   costs no digits, and joined in double. Blocks do not depend on the number of threads: one input
   gives the same bits on any. */
#include "common.h"

#define BLOCK_BYTES 65536
#define COLUMNS 64 /* of channels that a thread joins at a time */

static int64_t rows_of_a_block(int64_t channels) {
    int64_t rows = BLOCK_BYTES / (4 * channels);
    return rows < 8 ? 8 : rows;
}

static int64_t blocks_of(int64_t rows, int64_t channels) {
    int64_t block = rows_of_a_block(channels);
    return (rows + block - 1) / block;
}

/* Floats that both directions need: two sums a block and channel, and four constants a channel. */
int64_t norm_scratch(int64_t rows, int64_t channels) {
    return (2 * blocks_of(rows, channels) + 4) * channels;
}

/* Mean, and summed squares about it, of one block. */
INLINE void moments_as(const void *restrict x, int64_t rows, int64_t channels, int is_half,
                       float *restrict mean, float *restrict squares) {
    for (int64_t c = 0; c < channels; c++) mean[c] = squares[c] = 0;
    for (int64_t row = 1; row < rows; row++)
        for (int64_t c = 0; c < channels; c++) {
            float off = load(x, row * channels + c, is_half) - load(x, c, is_half);
            mean[c] += off;
            squares[c] += off * off;
        }
    for (int64_t c = 0; c < channels; c++) {
        squares[c] -= mean[c] * mean[c] / (float)rows;
        mean[c] = mean[c] / (float)rows + load(x, c, is_half);
    }
}

INLINE void scaled_as(const void *restrict x, const void *restrict add, void *restrict y,
                      int64_t rows, int64_t channels, int is_half, int has_add, int relu,
                      const float *restrict scale, const float *restrict shift) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t c = 0; c < channels; c++) {
            int64_t at = row * channels + c;
            float value = load(x, at, is_half) * scale[c] + shift[c];
            if (has_add) value += load(add, at, is_half);
            if (relu) value = value < 0 ? 0 : value; /* not a number stays one */
            store(y, at, value, is_half);
        }
}

/* The gradient behind the ReLU: that of the result where this was positive. Without `add` the
   result is computed again; with it, it is read. */
INLINE float behind(const void *restrict dy, const void *restrict y, int64_t at, float x,
                    float scale, float shift, int is_half, int has_add, int relu) {
    float grad = load(dy, at, is_half);
    if (!relu) return grad;
    float result = has_add ? load(y, at, is_half) : x * scale + shift;
    return result > 0 ? grad : 0;
}

/* Of one block: the sums of the gradient, and of the gradient times x - mean. */
INLINE void products_as(const void *restrict x, const void *restrict y, const void *restrict dy,
                        void *restrict dadd, int64_t rows, int64_t channels, int is_half,
                        int has_add, int relu, const float *restrict mean,
                        const float *restrict scale, const float *restrict shift,
                        float *restrict sum, float *restrict product) {
    for (int64_t c = 0; c < channels; c++) sum[c] = product[c] = 0;
    for (int64_t row = 0; row < rows; row++)
        for (int64_t c = 0; c < channels; c++) {
            int64_t at = row * channels + c;
            float value = load(x, at, is_half);
            float grad = behind(dy, y, at, value, scale[c], shift[c], is_half, has_add, relu);
            if (has_add) store(dadd, at, grad, is_half);
            sum[c] += grad;
            product[c] += grad * (value - mean[c]);
        }
}

INLINE void gradients_as(const void *restrict x, const void *restrict dy,
                         const void *restrict dadd, void *restrict dx, int64_t rows,
                         int64_t channels, int is_half, int has_add, int relu,
                         const float *restrict scale, const float *restrict shift,
                         const float *restrict of_x, const float *restrict constant) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t c = 0; c < channels; c++) {
            int64_t at = row * channels + c;
            float value = load(x, at, is_half);
            float grad = has_add ? load(dadd, at, is_half)
                                 : behind(dy, x, at, value, scale[c], shift[c], is_half, 0, relu);
            store(dx, at, grad * scale[c] + value * of_x[c] + constant[c], is_half);
        }
}

/* One copy of a loop for each case, chosen once a block, so that none has a test inside. */
#define BY_CASE(RUN)                                   \
    switch (4 * is_half + 2 * has_add + relu) {        \
        case 0: RUN(0, 0, 0); break;                   \
        case 1: RUN(0, 0, 1); break;                   \
        case 2: RUN(0, 1, 0); break;                   \
        case 3: RUN(0, 1, 1); break;                   \
        case 4: RUN(1, 0, 0); break;                   \
        case 5: RUN(1, 0, 1); break;                   \
        case 6: RUN(1, 1, 0); break;                   \
        case 7: RUN(1, 1, 1); break;                   \
    }

static void moments(const void *x, int64_t rows, int64_t channels, int is_half, float *mean,
                    float *squares) {
    if (is_half) moments_as(x, rows, channels, 1, mean, squares);
    else moments_as(x, rows, channels, 0, mean, squares);
}

static void scaled(const void *x, const void *add, void *y, int64_t rows, int64_t channels,
                   int is_half, int has_add, int relu, const float *scale, const float *shift) {
#define SCALED(h, a, r) scaled_as(x, add, y, rows, channels, h, a, r, scale, shift)
    BY_CASE(SCALED)
}

static void products(const void *x, const void *y, const void *dy, void *dadd, int64_t rows,
                     int64_t channels, int is_half, int has_add, int relu, const float *mean,
                     const float *scale, const float *shift, float *sum, float *product) {
#define PRODUCTS(h, a, r) \
    products_as(x, y, dy, dadd, rows, channels, h, a, r, mean, scale, shift, sum, product)
    BY_CASE(PRODUCTS)
}

static void gradients(const void *x, const void *dy, const void *dadd, void *dx, int64_t rows,
                      int64_t channels, int is_half, int has_add, int relu, const float *scale,
                      const float *shift, const float *of_x, const float *constant) {
#define GRADIENTS(h, a, r) \
    gradients_as(x, dy, dadd, dx, rows, channels, h, a, r, scale, shift, of_x, constant)
    BY_CASE(GRADIENTS)
}

/* All blocks' moments as those of all rows: mean, and summed squares about it. */
static void join_moments(const float *partial, int64_t rows, int64_t channels, int64_t from,
                         int64_t to, double *restrict mean, double *restrict squares) {
    int64_t block = rows_of_a_block(channels), blocks = blocks_of(rows, channels);
    for (int64_t c = from; c < to; c++) mean[c - from] = squares[c - from] = 0;
    for (int64_t k = 0; k < blocks; k++) {
        double share = (double)(least(rows, (k + 1) * block) - k * block) / (double)rows;
        for (int64_t c = from; c < to; c++)
            mean[c - from] += share * partial[2 * k * channels + c];
    }
    for (int64_t k = 0; k < blocks; k++) {
        double count = (double)(least(rows, (k + 1) * block) - k * block);
        for (int64_t c = from; c < to; c++) {
            double off = partial[2 * k * channels + c] - mean[c - from];
            squares[c - from] += partial[(2 * k + 1) * channels + c] + count * off * off;
        }
    }
}

/* Of channels from..to: what a forward pass keeps, scale and shift, and the running statistics. */
static void settle(const float *partial, int64_t rows, int64_t channels, int64_t from, int64_t to,
                   const float *weight, const float *bias, float eps, float momentum,
                   float *running_mean, float *running_var, float *mean, float *invstd,
                   float *scale, float *shift) {
    double means[COLUMNS], squares[COLUMNS];
    join_moments(partial, rows, channels, from, to, means, squares);
    for (int64_t c = from; c < to; c++) {
        mean[c] = (float)means[c - from];
        invstd[c] = (float)(1 / sqrt(squares[c - from] / (double)rows + (double)eps));
        scale[c] = invstd[c] * weight[c];
        shift[c] = bias[c] - mean[c] * scale[c];
        if (!running_mean) continue;
        float unbiased = (float)(squares[c - from] / (double)(rows - 1));
        running_mean[c] = (1 - momentum) * running_mean[c] + momentum * mean[c];
        running_var[c] = (1 - momentum) * running_var[c] + momentum * unbiased;
    }
}

void norm_forward(const char *x, const char *add, char *y, int64_t rows, int64_t channels,
                  int is_half, int has_add, int relu, const float *weight, const float *bias,
                  float eps, float momentum, float *running_mean, float *running_var,
                  float *mean, float *invstd, float *partial, int threads) {
    int64_t block = rows_of_a_block(channels), blocks = blocks_of(rows, channels);
    int64_t bytes = block * channels * (is_half ? 2 : 4);
    float *scale = partial + 2 * blocks * channels, *shift = scale + channels;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t k = 0; k < blocks; k++)
            moments(x + k * bytes, least(block, rows - k * block), channels, is_half,
                    partial + 2 * k * channels, partial + (2 * k + 1) * channels);
#pragma omp for schedule(static)
        for (int64_t from = 0; from < channels; from += COLUMNS)
            settle(partial, rows, channels, from, least(channels, from + COLUMNS), weight, bias,
                   eps, momentum, running_mean, running_var, mean, invstd, scale, shift);
        /* Backwards: what was read last is in the cache still. */
#pragma omp for schedule(static)
        for (int64_t k = blocks - 1; k >= 0; k--)
            scaled(x + k * bytes, add + k * bytes, y + k * bytes, least(block, rows - k * block),
                   channels, is_half, has_add, relu, scale, shift);
    }
}

/* Of channels from..to: gradients of weight and bias, and that of x as
   scale * (gradient behind the ReLU) + of_x * x + constant. */
static void slopes(const float *partial, int64_t rows, int64_t channels, int64_t from, int64_t to,
                   const float *mean, const float *invstd, const float *scale, float *dweight,
                   float *dbias, float *of_x, float *constant) {
    int64_t blocks = blocks_of(rows, channels);
    double sums[COLUMNS] = {0}, products[COLUMNS] = {0};
    for (int64_t k = 0; k < blocks; k++)
        for (int64_t c = from; c < to; c++) {
            sums[c - from] += partial[2 * k * channels + c];
            products[c - from] += partial[(2 * k + 1) * channels + c];
        }
    for (int64_t c = from; c < to; c++) {
        double sum = sums[c - from], product = products[c - from] * invstd[c];
        dweight[c] = (float)product;
        dbias[c] = (float)sum;
        of_x[c] = (float)(-scale[c] * invstd[c] * product / (double)rows);
        constant[c] = (float)(-scale[c] * sum / (double)rows - (double)of_x[c] * mean[c]);
    }
}

void norm_backward(const char *x, const char *y, const char *dy, char *dx, char *dadd,
                   int64_t rows, int64_t channels, int is_half, int has_add, int relu,
                   const float *weight, const float *bias, const float *mean,
                   const float *invstd, float *dweight, float *dbias, float *partial,
                   int threads) {
    int64_t block = rows_of_a_block(channels), blocks = blocks_of(rows, channels);
    int64_t bytes = block * channels * (is_half ? 2 : 4);
    float *scale = partial + 2 * blocks * channels, *shift = scale + channels;
    float *of_x = shift + channels, *constant = of_x + channels;
    for (int64_t c = 0; c < channels; c++) {
        scale[c] = invstd[c] * weight[c];
        shift[c] = bias[c] - mean[c] * scale[c];
    }
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t k = 0; k < blocks; k++)
            products(x + k * bytes, y + k * bytes, dy + k * bytes, dadd + k * bytes,
                     least(block, rows - k * block), channels, is_half, has_add, relu, mean,
                     scale, shift, partial + 2 * k * channels, partial + (2 * k + 1) * channels);
#pragma omp for schedule(static)
        for (int64_t from = 0; from < channels; from += COLUMNS)
            slopes(partial, rows, channels, from, least(channels, from + COLUMNS), mean, invstd,
                   scale, dweight, dbias, of_x, constant);
        /* Backwards, as above. */
#pragma omp for schedule(static)
        for (int64_t k = blocks - 1; k >= 0; k--)
            gradients(x + k * bytes, dy + k * bytes, dadd + k * bytes, dx + k * bytes,
                      least(block, rows - k * block), channels, is_half, has_add, relu, scale,
                      shift, of_x, constant);
    }
}
