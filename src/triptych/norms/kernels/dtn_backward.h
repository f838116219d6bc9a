/* Dynamic Token Normalization, backward pass: everything but x and the statistics of the tokens
   is computed again. */
#ifndef DTN_BACKWARD_H
#define DTN_BACKWARD_H

#include "dtn_differentiate.h"

/* half[y] becomes its own gradient, from that of the moments of row y. */
static void spread_row(Work *w, const Axis *ax, int y, const float *row_gradients) {
  const Layout *at = &w->at;
  int width = ax->side, from = at->row_start[y], count = at->row_start[y + 1] - from;
  long lda;
  const float *a = between(w, ax->mirror, width, at->order_x + from, count, w->identity, width,
                           &lda);
  combine(width, count, w->stride / VL, a, lda, targets_of(ax, w->whole), row_gradients,
          w->stride, w->half + (long)y * width * w->stride, w->stride);
}

static void differentiate_rows(const Problem *p, const Axis *ax, Work *w, const Partial *partial,
                               Slopes *slopes, int sample, int head) {
  const Layout *at = &w->at;
  int width = p->width;
  long strip = (long)width * w->stride;
  for (int y = 0; y < p->height; y += w->group) {
    int group = p->height - y < w->group ? p->height - y : w->group;
    for (int g = 0; g < group; g++) {
      contract_row(w, ax, y + g, w->rows + g * strip);
      differentiate_row(p, w, partial, slopes, sample, head, y + g, w->rows + g * strip,
                        w->row_gradients + g * strip);
    }
    int from = at->row_start[y], count = at->row_start[y + 1] - from;
    Rows sources = {w->half + y * strip, w->stride, strip, w->identity, width};
    Rows targets = {w->row_gradients, w->stride, strip, at->order_x + from, count};
    correlate(&sources, &targets, w->stride / VL, group, sources_of(ax, w->whole), w->total_x,
              width);
    for (int g = 0; g < group; g++) spread_row(w, ax, y + g, w->row_gradients + g * strip);
  }
}

/* Adds to x_gradient what the moments of column x send back to its tokens. */
static void spread_column(const Problem *p, const Axis *ay, Work *w, int sample, int head, int x) {
  const Layout *at = &w->at;
  int height = p->height, from = at->column_start[x], count = at->column_start[x + 1] - from;
  long lda;
  const float *a = between(w, ay->mirror, height, w->identity, height, at->slot_y + from, count,
                           &lda);
  combine(count, height, w->stride / VL, a, lda, targets_of(ay, w->whole),
          w->half + (long)x * w->stride, (long)p->width * w->stride, w->rows, w->stride);
  const int vectors = w->vectors, channels = w->channels, stride = w->stride;
  const float *sent = w->rows, *centred = w->moments + (long)from * stride;
  for (int i = 0; i < count; i++, sent += stride, centred += stride) {
    float *out = p->x_gradient + place_of(p, sample, at->slot_token[from + i], head) + w->first;
    for (int v = 0; v < vectors; v++) {
      const int left = channels - v * VL;
      Vec more = load(sent + v * VL) + 2 * load(centred + v * VL) * load(sent + (vectors + v) * VL);
      store_part(out + v * VL, load_part(out + v * VL, left) + more, left);
    }
  }
}

static void differentiate_columns(const Problem *p, const Axis *ay, Work *w, int sample,
                                  int head) {
  const Layout *at = &w->at;
  for (int x = 0; x < p->width; x += w->group) {
    int group = p->width - x < w->group ? p->width - x : w->group;
    int from = at->column_start[x], count = at->column_start[x + 1] - from;
    Rows sources = {w->moments + (long)from * w->stride, w->stride,
                    (long)p->height * w->stride, at->slot_y + from, count};
    Rows targets = {w->half + (long)x * w->stride, (long)p->width * w->stride, w->stride,
                    w->identity, p->height};
    correlate(&sources, &targets, w->stride / VL, group, sources_of(ay, w->whole), w->total_y,
              p->height);
    for (int g = 0; g < group; g++) spread_column(p, ay, w, sample, head, x + g);
  }
}

/* With hidden tokens the sums are divided by the share of the visible ones, which depends on the
   position weights too: a feature that is 1 at every visible token. */
static void differentiate_shares(const Axis *ay, const Axis *ax, Work *w) {
  const Layout *at = &w->at;
  int height = ay->side, width = ax->side;
  memset(w->half_slope, 0, sizeof(float) * height * width);
  for (int y = 0; y < height; y++)
    for (int k = at->row_start[y]; k < at->row_start[y + 1]; k++)
      for (int x = 0; x < width; x++) {
        int pair = x * width + at->order_x[k];
        w->total_x[pair * VL] += w->half_share[x * height + y] * w->slope[k];
        w->half_slope[x * height + y] += ax->share[pair] * w->slope[k];
      }
  for (int x = 0; x < width; x++)
    for (int s = at->column_start[x]; s < at->column_start[x + 1]; s++)
      for (int y = 0; y < height; y++)
        w->total_y[(at->slot_y[s] * height + y) * VL] += w->half_slope[x * height + y];
}

/* Through the softmax of one axis to its two position weights. */
static void differentiate_axis(const Axis *axis, const float *total, double *linear,
                               double *square) {
  int side = axis->side;
  for (int j = 0; j < side; j++) {
    double mean = 0, offset = 0, squared = 0, with_offset = 0, with_squared = 0;
    for (int i = axis->bounds[j]; i < axis->bounds[side + j]; i++) {
      double share = axis->mirror[j * side + i];
      if (share == 0) continue;
      double slope = share * sum_of(load(total + (long)(i * side + j) * VL)), d = j - i;
      mean += slope, offset += share * d, squared += share * d * d;
      with_offset += slope * d, with_squared += slope * d * d;
    }
    *linear += with_offset - mean * offset;
    *square += with_squared - mean * squared;
  }
}

static void differentiate_prefix(const Problem *p, const Work *w, const Partial *partial,
                                 int sample, int head) {
  long channel = (long)sample * channels_of(p) + (long)head * p->features;
  const float *weight = p->weight + (long)head * p->features;
  for (int token = 0; token < p->prefix; token++) {
    const float *kept = statistics_of(p, sample, token), *own = kept + kept_of(p) - 2;
    const float *x = w->x + token * w->x_step + (long)head * p->features;
    long place = place_of(p, sample, token, head);
    float scale = 1 / sqrtf(own[1] + p->eps), factor = p->rms ? kept[head] : 1;
    float *sums = sums_of(p, partial, sample, token, head);
    for (int d = 0; d < p->features; d++) {
      float z = (factor * x[d] - own[0]) * scale, gradient = p->y_gradient[place + d];
      float t = gradient * weight[d] * scale;
      partial->weight[channel + d] += gradient * z, partial->bias[channel + d] += gradient;
      p->x_gradient[place + d] = t;
      sums[0] += t, sums[1] -= 0.5f * t * z * scale;
    }
  }
}

static void begin_total(const Axis *axis, int whole, float *total) {
  Band band = targets_of(axis, whole);
  if (whole)
    clear_band(total, axis->side, VL, band.low, band.high);
  else
    memset(total, 0, sizeof(float) * axis->side * axis->side * VL);
}

static void begin_slopes(const Problem *p, const Axis *ay, Work *w, Slopes *slopes, int head) {
  *slopes = (Slopes){.mean_ratio = p->mean_logit ? sigmoid(p->mean_logit[head]) : 1,
                     .variance_ratio = sigmoid(p->variance_logit[head])};
  memset(w->slope, 0, sizeof(float) * w->at.count);
  begin_total(ay, w->whole, w->total_y), begin_total(ay + 1, w->whole, w->total_x);
}

static void end_slopes(const Axis *ay, const Axis *ax, const Work *w, const Slopes *slopes,
                       float *scalars) {
  double along_x = 0, along_y = 0, square = 0;
  differentiate_axis(ax, w->total_x, &along_x, &square);
  differentiate_axis(ay, w->total_y, &along_y, &square);
  float mean = slopes->mean_ratio, variance = slopes->variance_ratio;
  scalars[0] = mean * (1 - mean) * sum_of(slopes->mean_slope);
  scalars[1] = variance * (1 - variance) * sum_of(slopes->variance_slope);
  scalars[2] = (float)along_x, scalars[3] = (float)along_y, scalars[4] = (float)square;
}

static void backward_tile(const Problem *p, const Axis *ay, Work *w, Partial *partial, int sample,
                       int head) {
  const Axis *ax = ay + 1;
  long channel = (long)sample * channels_of(p) + (long)head * p->features;
  Slopes slopes;
  lay_out(p, sample, &w->at);
  share_out(w, ay, ax);
  begin_slopes(p, ay, w, &slopes, head);
  differentiate_prefix(p, w, partial, sample, head);
  for (int first = 0; first < p->features; first += w->block) {
    begin_block(p, w, head, first);
    memset(slopes.weight, 0, sizeof slopes.weight), memset(slopes.bias, 0, sizeof slopes.bias);
    pack(p, w, sample, head);
    contract_columns(w, ay, p->width);
    differentiate_rows(p, ax, w, partial, &slopes, sample, head);
    differentiate_columns(p, ay, w, sample, head);
    for (int d = 0; d < w->channels; d++) {
      partial->weight[channel + first + d] += slopes.weight[d / VL][d % VL];
      partial->bias[channel + first + d] += slopes.bias[d / VL][d % VL];
    }
  }
  if (!w->whole) differentiate_shares(ay, ax, w);
  end_slopes(ay, ax, w, &slopes, partial->scalars + 5 * ((long)sample * p->heads + head));
}

#endif
