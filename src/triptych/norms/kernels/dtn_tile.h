/* A tile: one head of one sample, in blocks of channels that fit the cache with all their tokens.
   Work space of a thread, and the contractions that forward and backward share. */
#ifndef DTN_TILE_H
#define DTN_TILE_H

#include "dtn_copy.h"

#define MOST_CHANNELS 64
#define AHEAD 12 /* tokens between asking for one and using it */
#define CACHED_FLOATS 131072 /* half of a small second-level cache, for each of two arrays */

typedef struct {
  Layout at;
  int whole, block;      /* channels of a block */
  int first, channels;   /* of the block at hand */
  int vectors, stride;   /* vectors of its channels; floats of a token: values, then squares */
  int group;             /* rows or columns that are correlated at once */
  float *moments;        /* [slot][stride]: centred value and its square */
  float *half;           /* [y][x][stride]: contracted over source rows; later its gradient */
  float *rows, *row_gradients; /* [group][x or y][stride] */
  float *panel;          /* the part of a kernel between visible tokens */
  float *inverse;        /* by order: 1 / share of the kernel on visible tokens */
  float *half_share, *slope, *half_slope; /* [x][y], by order, [x][y]; for hidden tokens */
  float *total_x, *total_y; /* gradients of the kernels, vectors of partial sums */
  int *identity;
  Axis shorter[2];       /* y and x of a padded sequence without its padding */
  int sample;            /* whose tokens x points to */
  const float *x;
  long x_step;           /* floats from one token to the next */
  float *copy;           /* of them, if their channels do not lie side by side */
  float centre[MOST_CHANNELS], weight[MOST_CHANNELS], bias[MOST_CHANNELS];
} Work;

static float *take(float **memory, long floats) {
  float *start = *memory;
  *memory += (floats + 15) / 16 * 16;
  return start;
}

/* Work space for one thread; NULL if there is no memory. */
static Work *make_work(const Problem *p, int backward) {
  long height = p->height, width = p->width, count = height * width;
  int side = larger(p->height, p->width), fit = (int)(CACHED_FLOATS / (2 * count)) / VL * VL;
  int most = fit > MOST_CHANNELS ? MOST_CHANNELS : larger(fit, VL);
  int blocks = (p->features + most - 1) / most;
  int block = padded((p->features + blocks - 1) / blocks);
  long stride = 2 * block, group = p->visible ? 1 : larger(1, (int)(256 / stride));
  if (group > larger(p->height, p->width)) group = side;
  long tile = count * stride, strip = group * side * stride;
  long floats = 2 * tile + 2 * strip + (long)side * side + 4 * count + 16 * 12;
  if (backward) floats += (width * width + height * height) * VL;
  if (may_be_padded(p)) floats += 2 * width * width + 2 + 4 * 16;
  if (p->x_channel != 1) floats += (long)p->tokens * channels_of(p) + 15;
  long ints = 6 * count + 3 * (long)side + 8 + (may_be_padded(p) ? 4 * width + 4 : 0);
  char *memory = NULL;
  size_t bytes = (sizeof(Work) + 63) / 64 * 64;
  if (posix_memalign((void **)&memory, 64, bytes + (size_t)(floats + ints) * 4)) return NULL;
  Work *w = (Work *)memory;
  float *next = (float *)(memory + bytes);
  *w = (Work){.whole = !p->visible, .block = block, .group = (int)group, .sample = -1};
  w->moments = take(&next, tile), w->half = take(&next, tile);
  w->rows = take(&next, strip), w->row_gradients = take(&next, strip);
  w->panel = take(&next, (long)side * side);
  w->inverse = take(&next, count), w->half_share = take(&next, count);
  w->slope = take(&next, count), w->half_slope = take(&next, count);
  if (backward) w->total_x = take(&next, width * width * VL);
  if (backward) w->total_y = take(&next, height * height * VL);
  if (p->x_channel != 1) w->copy = take(&next, (long)p->tokens * channels_of(p));
  if (may_be_padded(p)) {
    w->shorter[1].share = take(&next, width * width);
    w->shorter[1].mirror = take(&next, width * width);
    w->shorter[0].share = take(&next, 1), w->shorter[0].mirror = take(&next, 1);
  }
  int *list = (int *)next;
  w->at = (Layout){.set = -1, .column_start = list, .row_start = list + width + 1};
  list += width + height + 2;
  int **lists[] = {&w->at.slot, &w->at.order_x, &w->at.token, &w->at.slot_y, &w->at.slot_token};
  for (int i = 0; i < 5; i++) *lists[i] = list, list += count;
  w->identity = list;
  for (int i = 0; i < side; i++) list[i] = i;
  list += side;
  if (may_be_padded(p)) w->shorter[0].bounds = list, w->shorter[1].bounds = list + 4;
  return w;
}

/* Makes the tokens of the sample readable one by one. */
static void open_sample(const Problem *p, Work *w, int sample) {
  if (w->sample == sample) return;
  w->sample = sample, w->x = p->x + sample * p->x_sample, w->x_step = p->x_token;
  if (p->x_channel == 1) return;
  copy_tokens(w->x, p->x_channel, p->tokens, channels_of(p), w->copy);
  w->x = w->copy, w->x_step = channels_of(p);
}

/* Shares of the visible sources: with hidden tokens every sum is divided by them. */
static void share_out(Work *w, const Axis *ay, const Axis *ax) {
  const Layout *at = &w->at;
  int height = ay->side, width = ax->side;
  for (int k = 0; w->whole && k < at->count; k++) w->inverse[k] = 1;
  if (w->whole) return;
  memset(w->half_share, 0, sizeof(float) * height * width);
  for (int x = 0; x < width; x++)
    for (int s = at->column_start[x]; s < at->column_start[x + 1]; s++)
      for (int y = 0; y < height; y++)
        w->half_share[x * height + y] += ay->share[at->slot_y[s] * height + y];
  for (int y = 0; y < height; y++)
    for (int k = at->row_start[y]; k < at->row_start[y + 1]; k++) {
      float share = 0;
      for (int x = 0; x < width; x++)
        share += ax->share[x * width + at->order_x[k]] * w->half_share[x * height + y];
      w->inverse[k] = 1 / share;
    }
}

INLINE void begin_block(const Problem *p, Work *w, int head, int first) {
  int left = p->features - first;
  w->first = first, w->channels = left < w->block ? left : w->block;
  w->vectors = padded(w->channels) / VL, w->stride = 2 * w->vectors * VL;
  for (int v = 0; v < w->vectors; v++) {
    long c = (long)head * p->features + first + v * VL;
    store(w->weight + v * VL, load_part(p->weight + c, w->channels - v * VL));
    store(w->bias + v * VL, load_part(p->bias + c, w->channels - v * VL));
  }
}

/* Where a token lies that is dealt with a row later than the k-th: the tile's parts of the tokens
   are too far apart for the machine to foresee them. */
INLINE long place_ahead(const Problem *p, const Work *w, int sample, int k, int head) {
  int later = k + p->width < w->at.count ? k + p->width : w->at.count - 1;
  return place_of(p, sample, w->at.token[later], head) + w->first;
}

/* A constant for each channel, near its tokens, is taken off first: it changes no statistic, and
   without it a common offset would eat the digits of the variance. After the RMS step no token can
   be far out, so that a few of them do. */
static void find_centre(const Problem *p, Work *w, int sample, int head) {
  const Layout *at = &w->at;
  const float *block = w->x + (long)head * p->features + w->first;
  int step = p->rms ? larger(1, at->count / 16) : 1, taken = 0;
  Vec sum[MOST_CHANNELS / VL] = {zero()};
  for (int k = 0; k < at->count; k += step, taken++) {
    const float *x = block + at->token[k] * w->x_step;
    float factor = p->rms ? statistics_of(p, sample, at->token[k])[head] : 1;
    for (int v = 0; v < w->vectors; v++)
      sum[v] += factor * load_part(x + v * VL, w->channels - v * VL);
  }
  for (int v = 0; v < w->vectors; v++) store(w->centre + v * VL, sum[v] / (float)larger(taken, 1));
}

/* Fills moments. */
static void pack(const Problem *p, Work *w, int sample, int head) {
  const Layout *at = &w->at;
  int vectors = w->vectors, channels = w->channels, count = at->count;
  const float *block = w->x + (long)head * p->features + w->first;
  Vec centre[MOST_CHANNELS / VL];
  find_centre(p, w, sample, head);
  for (int v = 0; v < vectors; v++) centre[v] = load(w->centre + v * VL);
  for (int k = 0; k < count; k++) {
    const float *x = block + at->token[k] * w->x_step;
    fetch(block + at->token[k + AHEAD < count ? k + AHEAD : k] * w->x_step, channels);
    float factor = p->rms ? statistics_of(p, sample, at->token[k])[head] : 1;
    float *out = w->moments + (long)at->slot[k] * w->stride;
    for (int v = 0; v < vectors; v++) {
      Vec c = factor * load_part(x + v * VL, channels - v * VL) - centre[v];
      store(out + v * VL, c);
      store(out + (vectors + v) * VL, c * c);
    }
  }
}

/* panel[k][m] = kernel[rows[k]][columns[m]], or the kernel itself when all tokens are there. */
static const float *between(const Work *w, const float *kernel, long side, const int *rows, int n,
                            const int *columns, int m, long *lda) {
  *lda = w->whole ? side : m;
  if (w->whole) return kernel;
  for (int k = 0; k < n; k++)
    for (int i = 0; i < m; i++) w->panel[k * m + i] = kernel[rows[k] * side + columns[i]];
  return w->panel;
}

/* half[y][x] = sum over the visible tokens of column x, weighted for row y. */
static void contract_columns(Work *w, const Axis *ay, int width) {
  const Layout *at = &w->at;
  int height = ay->side, n = w->stride / VL;
  long lda;
  for (int x = 0; x < width; x++) {
    int from = at->column_start[x], count = at->column_start[x + 1] - from;
    const float *a = between(w, ay->share, height, at->slot_y + from, count, w->identity, height,
                             &lda);
    combine(height, count, n, a, lda, sources_of(ay, w->whole),
            w->moments + (long)from * w->stride, w->stride, w->half + (long)x * w->stride,
            (long)width * w->stride);
  }
}

/* rows[m] = the moments around the m-th visible token of row y. */
static void contract_row(Work *w, const Axis *ax, int y, float *rows) {
  const Layout *at = &w->at;
  int width = ax->side, from = at->row_start[y], count = at->row_start[y + 1] - from;
  long lda;
  const float *a = between(w, ax->share, width, w->identity, width, at->order_x + from, count,
                           &lda);
  combine(count, width, w->stride / VL, a, lda, sources_of(ax, w->whole),
          w->half + (long)y * width * w->stride, w->stride, rows, w->stride);
}

#endif
