/* RoIAlign (He et al. 2017, Sec. 3) on channels_last cells, forward and backward, with the rules of
   torchvision's roi_align: each bin is the mean of samples between four cells. Each value is
   computed by one thread, in one order: one input gives the same bits on any number of them. */
#include "common.h"

#define CHANNELS 256 /* at a time, so that the sums so far stay in the first cache */
#define TOO_MANY 2147483648.0f

/* Of a call: bins along a side of a RoI and samples along one of a bin, 0 for one a cell. Aligned,
   a cell's centre is at 0.5; otherwise it is at 0, and RoIs are a cell long at least. */
typedef struct {
    int64_t bins, samples;
    float scale;
    int is_aligned;
} Rules;

/* A bin's samples along one side of a map of `cells`; where it begins and its length, in cells. */
typedef struct {
    float begin, length;
    int64_t samples, cells;
} Side;

/* The two cells along a side that a sample lies between, and their parts in it. */
typedef struct {
    int is_inside;
    int64_t low, high;
    float of_low, of_high;
} Sample;

/* The four cells of a sample, as offsets in the map, and their parts in it. */
typedef struct {
    int64_t at[4];
    float part[4];
} Corners;

/* A compiler may not join it with a sum: unrounded, a sample on the border of a map would fall on
   the other side of it than torchvision's, and count or not. */
static float product(float a, float b) {
    volatile float rounded = a * b;
    return rounded;
}

static Side side_of(float near, float far, int64_t bin, int64_t cells, Rules rules) {
    float offset = rules.is_aligned ? 0.5f : 0.0f;
    float start = product(near, rules.scale) - offset;
    float extent = product(far, rules.scale) - offset - start;
    if (!rules.is_aligned && extent < 1) extent = 1;
    Side side = {.length = extent / (float)rules.bins, .samples = rules.samples, .cells = cells};
    side.begin = start + product((float)bin, side.length);
    if (rules.samples <= 0) {
        float wanted = ceilf(side.length); /* below 1 where the RoI is upside down */
        side.samples = wanted >= 1 && wanted < TOO_MANY ? (int64_t)wanted : 0;
    }
    return side;
}

static Sample sample_of(const Side *side, int64_t number) {
    float at = side->begin + ((float)number + 0.5f) * side->length / (float)side->samples;
    Sample sample = {.is_inside = at >= -1 && at <= (float)side->cells};
    if (!sample.is_inside) return sample;
    at = at > 0 ? at : 0;
    sample.low = least((int64_t)at, side->cells - 1);
    sample.high = least(sample.low + 1, side->cells - 1);
    sample.of_high = sample.low < sample.high ? at - (float)sample.low : 0;
    sample.of_low = 1 - sample.of_high;
    return sample;
}

INLINE Corners corners_of(Sample row, Sample col, int64_t width, int64_t channels) {
    Corners corners = {
        .at = {(row.low * width + col.low) * channels, (row.low * width + col.high) * channels,
               (row.high * width + col.low) * channels, (row.high * width + col.high) * channels},
        .part = {row.of_low * col.of_low, row.of_low * col.of_high, row.of_high * col.of_low,
                 row.of_high * col.of_high}};
    return corners;
}

INLINE float samples_of(Side down, Side across) {
    int64_t samples = down.samples * across.samples;
    return samples > 1 ? (float)samples : 1;
}

INLINE void gather_as(const void *restrict cells, int64_t count, int is_half, Corners corners,
                      float *restrict sum) {
    for (int64_t c = 0; c < count; c++)
        sum[c] += corners.part[0] * load(cells, corners.at[0] + c, is_half) +
                  corners.part[1] * load(cells, corners.at[1] + c, is_half) +
                  corners.part[2] * load(cells, corners.at[2] + c, is_half) +
                  corners.part[3] * load(cells, corners.at[3] + c, is_half);
}

/* The mean of one bin's samples, of `count` channels. */
INLINE void bin_as(const void *restrict cells, int64_t channels, int is_half, Side down,
                   Side across, int64_t count, void *restrict out) {
    float sum[CHANNELS], samples = samples_of(down, across);
    for (int64_t c = 0; c < count; c++) sum[c] = 0;
    for (int64_t i = 0; i < down.samples; i++) {
        Sample row = sample_of(&down, i);
        for (int64_t j = 0; row.is_inside && j < across.samples; j++) {
            Sample col = sample_of(&across, j);
            if (!col.is_inside) continue;
            gather_as(cells, count, is_half, corners_of(row, col, across.cells, channels), sum);
        }
    }
    for (int64_t c = 0; c < count; c++) store(out, c, sum[c] / samples, is_half);
}

static void bin(const char *cells, int64_t channels, int is_half, Side down, Side across,
                char *out) {
    for (int64_t from = 0; from < channels; from += CHANNELS) {
        int64_t count = least(CHANNELS, channels - from), skip = from * (is_half ? 2 : 4);
        if (is_half) bin_as(cells + skip, channels, 1, down, across, count, out + skip);
        else bin_as(cells + skip, channels, 0, down, across, count, out + skip);
    }
}

/* cells (images, height, width, channels); rois (count, 5): image, x1, y1, x2, y2, which `scale`
   turns into cells; out (count, size, size, channels). `samples` along a side of a bin: 0 takes one
   for each cell that it is long. */
void roi_align_forward(const char *cells, int64_t height, int64_t width, int64_t channels,
                       int is_half, const float *rois, int64_t count, int64_t size, float scale,
                       int64_t samples, int is_aligned, char *out, int threads) {
    int64_t bytes = channels * (is_half ? 2 : 4);
    Rules rules = {size, samples, scale, is_aligned};
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t number = 0; number < count * size; number++) {
        const float *roi = rois + number / size * 5;
        const char *own = cells + (int64_t)roi[0] * height * width * bytes;
        Side down = side_of(roi[2], roi[4], number % size, height, rules);
        for (int64_t col = 0; col < size; col++)
            bin(own, channels, is_half, down, side_of(roi[1], roi[3], col, width, rules),
                out + (number * size + col) * bytes);
    }
}

INLINE void add(float *restrict total, const float *restrict grad, float part, int64_t count) {
    for (int64_t c = 0; c < count; c++) total[c] += grad[c] * part;
}

/* One bin's gradient, of `count` channels, to the cells of its samples. Corner by corner: at the
   border of the map two of them are one cell. */
static void scatter(const float *grad, int64_t count, int64_t channels, Side down, Side across,
                    float *total) {
    float samples = samples_of(down, across);
    for (int64_t i = 0; i < down.samples; i++) {
        Sample row = sample_of(&down, i);
        for (int64_t j = 0; row.is_inside && j < across.samples; j++) {
            Sample col = sample_of(&across, j);
            if (!col.is_inside) continue;
            Corners corners = corners_of(row, col, across.cells, channels);
            for (int k = 0; k < 4; k++)
                add(total + corners.at[k], grad, corners.part[k] / samples, count);
        }
    }
}

static void read_as_floats(const void *restrict from, int64_t count, int is_half,
                           float *restrict to) {
    if (is_half)
        for (int64_t c = 0; c < count; c++) to[c] = load(from, c, 1);
    else
        for (int64_t c = 0; c < count; c++) to[c] = load(from, c, 0);
}

/* grad (count, size, size, channels); total (images, height, width, channels), zero before, takes
   the sums in the order of RoIs, bins and samples. */
void roi_align_backward(const char *grad, int64_t height, int64_t width, int64_t channels,
                        int is_half, const float *rois, int64_t count, int64_t size, float scale,
                        int64_t samples, int is_aligned, float *total, int threads) {
    int64_t share = least(CHANNELS, ((channels + threads - 1) / threads + 15) / 16 * 16);
    Rules rules = {size, samples, scale, is_aligned};
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t from = 0; from < channels; from += share) {
        float own[CHANNELS];
        int64_t width_of_share = least(share, channels - from);
        for (int64_t number = 0; number < count * size; number++) {
            const float *roi = rois + number / size * 5;
            float *to = total + (int64_t)roi[0] * height * width * channels + from;
            Side down = side_of(roi[2], roi[4], number % size, height, rules);
            for (int64_t col = 0; col < size; col++) {
                int64_t at = (number * size + col) * channels + from;
                read_as_floats(grad + at * (is_half ? 2 : 4), width_of_share, is_half, own);
                scatter(own, width_of_share, channels, down,
                        side_of(roi[1], roi[3], col, width, rules), to);
            }
        }
    }
}
