/* RoIPool (Girshick 2015, Sec. 2.1) on channels_last cells, forward and backward. Which cells a bin
   holds is decided by the caller. Each value is computed by one thread, in one order: one input
   gives the same bits on any number of them. */
#include "common.h"

#define CHANNELS 256 /* at a time, so that the maxima so far stay in the first cache */
#define NO_CELL 0xffff

/* The largest of one bin's cells, and which it was: the first of equal ones, row by row. */
INLINE void bin_as(const void *restrict cells, int64_t width, int64_t channels, int is_half,
                   int64_t top, int64_t bottom, int64_t left, int64_t right, int64_t from,
                   int64_t count, void *restrict out, uint16_t *restrict which, int is_kept) {
    float best[CHANNELS];
    uint32_t place[CHANNELS];
    int64_t first = (top * width + left) * channels + from;
    for (int64_t c = 0; c < count; c++) {
        best[c] = load(cells, first + c, is_half);
        place[c] = (uint32_t)(top * width + left);
    }
    for (int64_t row = top; row < bottom; row++)
        for (int64_t col = left; col < right; col++) {
            int64_t at = (row * width + col) * channels + from;
            uint32_t cell = (uint32_t)(row * width + col);
            for (int64_t c = 0; c < count; c++) {
                float value = load(cells, at + c, is_half);
                int is_larger = value > best[c];
                best[c] = is_larger ? value : best[c];
                if (is_kept) place[c] = is_larger ? cell : place[c];
            }
        }
    for (int64_t c = 0; c < count; c++) store(out, c, best[c], is_half);
    if (is_kept)
        for (int64_t c = 0; c < count; c++) which[c] = (uint16_t)place[c];
}

INLINE void empty_bin(void *out, uint16_t *which, int64_t count, int is_half, int is_kept) {
    memset(out, 0, count * (is_half ? 2 : 4));
    if (is_kept)
        for (int64_t c = 0; c < count; c++) which[c] = NO_CELL;
}

static void bin(const void *cells, int64_t width, int64_t channels, int is_half, const int32_t *box,
                int64_t from, char *out, uint16_t *which) {
    int64_t count = least(CHANNELS, channels - from);
    void *to = out + from * (is_half ? 2 : 4);
    uint16_t *kept = which ? which + from : which;
#define BIN(half, keep)                                                                         \
    bin_as(cells, width, channels, half, box[0], box[1], box[2], box[3], from, count, to, kept, \
           keep)
    if (box[0] >= box[1] || box[2] >= box[3]) empty_bin(to, kept, count, is_half, which != 0);
    else if (is_half && which) BIN(1, 1);
    else if (is_half) BIN(1, 0);
    else if (which) BIN(0, 1);
    else BIN(0, 0);
}

/* cells (images, height, width, channels); image (rois); tops, bottoms, lefts and rights
   (rois, size): a bin's first cell and the one behind its last along each side. out
   (rois, size, size, channels), and as much of `which`, cells of the image, or none where no
   gradient will be wanted. */
void roi_pool_forward(const char *cells, int64_t height, int64_t width, int64_t channels,
                      int is_half, const int32_t *image, const int32_t *tops,
                      const int32_t *bottoms, const int32_t *lefts, const int32_t *rights,
                      int64_t rois, int64_t size, char *out, uint16_t *which, int threads) {
    int64_t bytes = is_half ? 2 : 4;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t number = 0; number < rois * size; number++) {
        int64_t roi = number / size;
        const char *own = cells + image[roi] * height * width * channels * bytes;
        for (int64_t col = 0; col < size; col++) {
            int32_t box[4] = {tops[number], bottoms[number], lefts[roi * size + col],
                              rights[roi * size + col]};
            int64_t at = (number * size + col) * channels;
            for (int64_t from = 0; from < channels; from += CHANNELS)
                bin(own, width, channels, is_half, box, from, out + at * bytes,
                    which ? which + at : which);
        }
    }
}

INLINE void scatter(const void *restrict grad, const uint16_t *restrict which, int64_t count,
                    int is_half, int64_t channels, float *restrict total) {
    for (int64_t c = 0; c < count; c++)
        if (which[c] != NO_CELL) total[which[c] * channels + c] += load(grad, c, is_half);
}

/* grad and which (rois, size, size, channels); total (images, cells, channels), zero before, takes
   the sums in the order of RoIs and bins. */
void roi_pool_backward(const char *grad, const uint16_t *which, int is_half, const int32_t *image,
                       int64_t cells, int64_t channels, int64_t rois, int64_t bins, float *total,
                       int threads) {
    int64_t bytes = is_half ? 2 : 4;
    int64_t share = ((channels + threads - 1) / threads + 15) / 16 * 16;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t from = 0; from < channels; from += share) {
        int64_t count = least(share, channels - from);
        for (int64_t roi = 0; roi < rois; roi++) {
            float *own = total + image[roi] * cells * channels + from;
            int64_t end = (roi + 1) * bins * channels;
            for (int64_t at = roi * bins * channels; at < end; at += channels) {
                const char *row = grad + (at + from) * bytes;
                if (is_half) scatter(row, which + at + from, count, 1, channels, own);
                else scatter(row, which + at + from, count, 0, channels, own);
            }
        }
    }
}
