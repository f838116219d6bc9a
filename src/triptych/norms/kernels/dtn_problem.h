/* What both passes share: the arguments, the position kernels, where the tokens lie, work space. */
#ifndef DTN_PROBLEM_H
#define DTN_PROBLEM_H

#include <stdint.h>
#include <stdlib.h>

#include "dtn_products.h"

/* Products take up to so many rows and columns at once, and so reach that far beyond a band. */
#define MARGIN 8

/* The arguments, laid out as in cpu.py. x, y and their gradients are (batch, tokens, heads,
   features); statistics (batch, tokens, kept): with the RMS step one factor a head, then mean and
   variance of the token. Gradients of the parameters are written by the backward pass alone.
   Of x either the channels or the tokens lie side by side; all else is contiguous. */
typedef struct {
  const float *x, *weight, *bias, *mean_logit, *variance_logit, *position;
  const uint8_t *visible; /* (sets, height*width), NULL if all are */
  float *y, *statistics;
  const float *y_gradient;
  float *x_gradient, *weight_gradient, *bias_gradient;
  float *mean_gradient, *variance_gradient, *position_gradient;
  long x_sample, x_token, x_channel; /* floats from one to the next */
  int batch, tokens, prefix, height, width, heads, features;
  int sets, packed, rms, unbiased, threads;
  float eps;
} Problem;

INLINE int kept_of(const Problem *p) { return (p->rms ? p->heads : 0) + 2; }
INLINE int channels_of(const Problem *p) { return p->heads * p->features; }
INLINE float *statistics_of(const Problem *p, int sample, int token) {
  return p->statistics + ((long)sample * p->tokens + token) * kept_of(p);
}
INLINE long place_of(const Problem *p, int sample, int token, int head) {
  return ((long)sample * p->tokens + token) * channels_of(p) + (long)head * p->features;
}
INLINE int is_there(const Problem *p, int sample, int token) {
  if (!p->visible || p->packed || token < p->prefix) return 1;
  long set = p->sets > 1 ? sample : 0;
  return p->visible[set * p->height * p->width + token - p->prefix];
}
INLINE int may_be_padded(const Problem *p) {
  return p->visible && !p->packed && p->height == 1;
}
/* Tokens of a sample before its padding; 0 where others than the last are hidden, or all. */
INLINE int length_of(const Problem *p, int sample) {
  if (!may_be_padded(p)) return 0;
  const uint8_t *visible = p->visible + (p->sets > 1 ? (long)sample * p->width : 0);
  int length = 0;
  while (length < p->width && visible[length]) length++;
  for (int x = length; x < p->width; x++)
    if (visible[x]) return 0;
  return length;
}
INLINE float sigmoid(float logit) { return 1.0f / (1.0f + expf(-logit)); }
INLINE int padded(int n) { return (n + VL - 1) / VL * VL; }
INLINE int larger(int a, int b) { return a > b ? a : b; }

/* One axis of one head: share[source][target] of a softmax over sources, its transpose, and which
   of the other index matter for each. */
typedef struct {
  int side;
  float *share, *mirror;
  int *bounds; /* low and high of the sources of each target, then of the targets of each source */
} Axis;

INLINE Band sources_of(const Axis *axis, int whole) {
  return whole ? (Band){axis->bounds, axis->bounds + axis->side} : (Band){0, 0};
}
INLINE Band targets_of(const Axis *axis, int whole) {
  const int *b = axis->bounds + 2 * axis->side;
  return whole ? (Band){b, b + axis->side} : (Band){0, 0};
}

/* A score this far below another weighs nothing beside it in float32: e^-28 < 1e-12, and after the
   RMS step, which leaves no token much larger than the others, e^-22 < 3e-10. */
INLINE float negligible(const Problem *p) { return p->rms ? -22.0f : -28.0f; }

/* The largest score along one axis, 0 or more as a token's own is 0. */
static float highest(float linear, float square, int side) {
  float most = 0;
  for (int offset = 1 - side; offset < side; offset++) {
    float score = linear * (float)offset + square * (float)offset * (float)offset;
    if (score > most) most = score;
  }
  return most;
}

/* Where what is not 0 begins and ends in each row. */
static void fill_bounds(const float *rows, int side, int *low, int *high) {
  for (int i = 0; i < side; i++) {
    const float *row = rows + (long)i * side;
    int from = 0, to = side;
    while (to > 0 && row[to - 1] == 0) to--;
    while (from < to && row[from] == 0) from++;
    low[i] = from, high[i] = to;
  }
}

/* Zeros where a product of neighbouring rows may read or write: what lies in the band of a row or
   near it, of `vector` floats each. */
static void clear_band(float *rows, int side, int vector, const int *low, const int *high) {
  for (int i = 0; i < side; i++) {
    int from = side, to = 0;
    for (int k = i > MARGIN ? i - MARGIN : 0; k < side && k <= i + MARGIN; k++) {
      if (low[k] < from) from = low[k];
      if (high[k] > to) to = high[k];
    }
    from = from > MARGIN ? from - MARGIN : 0, to = to + MARGIN < side ? to + MARGIN : side;
    if (from < to)
      memset(rows + ((long)i * side + from) * vector, 0, sizeof(float) * (to - from) * vector);
  }
}

/* Cuts off what lies `cut` below the largest score or, with hidden tokens, below the token's own,
   which is there whatever is hidden. Without that, numbers too small to be normal would slow every
   product. */
static void fill_axis(Axis *axis, float linear, float square, float cut, int whole) {
  int side = axis->side;
  for (int j = 0; j < side; j++) {
    float *column = axis->mirror + (long)j * side, most = -INFINITY, total = 0;
    for (int i = 0; i < side; i++) {
      float offset = (float)(j - i);
      column[i] = linear * offset + square * offset * offset;
      if (column[i] > most) most = column[i];
    }
    float least = whole ? most + cut : cut;
    for (int i = 0; i < side; i++) {
      column[i] = column[i] < least ? 0 : expf(column[i] - most);
      total += column[i];
    }
    for (int i = 0; i < side; i++) axis->share[(long)i * side + j] = column[i] /= total;
  }
  fill_bounds(axis->mirror, side, axis->bounds, axis->bounds + side);
  fill_bounds(axis->share, side, axis->bounds + 2 * side, axis->bounds + 3 * side);
}

/* The first `part->side` places of an axis: each target's shares of what is left, over their sum. */
static void shorten(const Axis *whole, Axis *part) {
  const int side = part->side, all = whole->side;
  for (int b = 0; b < 4; b++)
    for (int i = 0; i < side; i++) {
      int bound = whole->bounds[b * all + i];
      part->bounds[b * side + i] = bound < side ? bound : side;
    }
  const int *low = part->bounds, *high = low + side;
  clear_band(part->mirror, side, 1, low, high);
  clear_band(part->share, side, 1, high + side, high + 2 * side);
  for (int j = 0; j < side; j++) {
    const float *from = whole->mirror + (long)j * all;
    float *column = part->mirror + (long)j * side, total = 0;
    for (int i = low[j]; i < high[j]; i++) total += from[i];
    for (int i = low[j]; i < high[j]; i++)
      part->share[(long)i * side + j] = column[i] = from[i] / total;
  }
}

/* The axes of all heads, [head][y, x], in one allocation; NULL if there is no memory. */
static Axis *make_axes(const Problem *p) {
  long sides[2] = {p->height, p->width}, floats = 0, ints = 0;
  for (int a = 0; a < 2; a++) floats += 2 * sides[a] * sides[a], ints += 4 * sides[a];
  size_t bytes = 2 * sizeof(Axis) + (size_t)floats * 4 + (size_t)ints * 4;
  char *memory = malloc(bytes * p->heads);
  if (!memory) return NULL;
  Axis *axes = (Axis *)memory;
  float *share = (float *)(memory + 2 * sizeof(Axis) * p->heads);
  int *bounds = (int *)(share + floats * p->heads);
  for (int i = 0; i < 2 * p->heads; i++) {
    long side = sides[i % 2];
    axes[i] = (Axis){(int)side, share, share + side * side, bounds};
    share += 2 * side * side, bounds += 4 * side;
    const float *w = p->position + 3 * (i / 2);
    float linear = w[i % 2 ? 0 : 1], other = w[i % 2 ? 1 : 0];
    /* What one axis takes off, the other may add. */
    float cut = negligible(p) - (p->visible ? highest(other, w[2], (int)sides[1 - i % 2]) : 0);
    fill_axis(&axes[i], linear, w[2], cut, !p->visible);
  }
  return axes;
}

/* Where the tokens of one visible set lie. They are numbered column by column ("slots") in the
   work space, and row by row ("order") as in x. */
typedef struct {
  int count, set;
  int *column_start, *row_start;     /* width + 1, height + 1 */
  int *slot, *order_x, *token;       /* by order: slot, column, token of x */
  int *slot_y, *slot_token;          /* by slot: row, token of x */
} Layout;

static void lay_out(const Problem *p, int sample, Layout *at) {
  int set = p->sets > 1 ? sample : 0;
  if (at->set == set) return;
  const uint8_t *visible = p->visible ? p->visible + (long)set * p->height * p->width : NULL;
  memset(at->column_start, 0, (p->width + 1) * sizeof(int));
  int count = 0;
  for (int y = 0, t = 0; y < p->height; y++) {
    at->row_start[y] = count;
    for (int x = 0; x < p->width; x++, t++)
      if (!visible || visible[t]) {
        at->slot[count] = y;
        at->order_x[count] = x;
        at->token[count] = p->prefix + (p->packed ? count : t);
        at->column_start[x + 1]++, count++;
      }
  }
  at->row_start[p->height] = count;
  for (int x = 0; x < p->width; x++) at->column_start[x + 1] += at->column_start[x];
  for (int k = 0; k < count; k++) {
    int x = at->order_x[k], slot = at->column_start[x]++;
    at->slot_y[slot] = at->slot[k], at->slot_token[slot] = at->token[k];
    at->slot[k] = slot;
  }
  for (int x = p->width; x > 0; x--) at->column_start[x] = at->column_start[x - 1];
  at->column_start[0] = 0;
  at->count = count, at->set = set;
}

#endif
