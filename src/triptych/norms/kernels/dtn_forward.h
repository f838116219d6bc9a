/* Dynamic Token Normalization, forward pass. */
#ifndef DTN_FORWARD_H
#define DTN_FORWARD_H

#include "dtn_tile.h"

/* What the token itself contributes: one factor a head, mean and variance over all channels. */
static void token_statistics(const Problem *p, const Work *w, int sample, int token) {
  float *kept = statistics_of(p, sample, token);
  const float *x = w->x + token * w->x_step;
  int features = p->features, heads = p->heads, rms = p->rms;
  float channels = (float)channels_of(p), eps = p->eps;
  Vec sum = zero(), squares_off = zero();
  for (int h = 0; h < heads; h++) {
    Vec total = zero(), squares = zero();
    for (int d = 0; d < features; d += VL) {
      Vec value = load_part(x + h * features + d, features - d);
      total += value, squares += value * value;
    }
    float factor = rms ? 1 / sqrtf(sum_of(squares) / (float)features + eps) : 1;
    if (rms) kept[h] = factor;
    sum += factor * total;
  }
  float mean = sum_of(sum) / channels;
  for (int h = 0; h < heads; h++) {
    float factor = rms ? kept[h] : 1;
    for (int d = 0; d < features; d += VL) {
      Vec off = factor * load_part(x + h * features + d, features - d) - mean;
      off = first_of(off, features - d);
      squares_off += off * off;
    }
  }
  kept += rms ? heads : 0;
  kept[0] = mean;
  kept[1] = sum_of(squares_off) / (channels - (float)p->unbiased);
}

/* y of the tokens outside the grid: statistics of their own alone. */
static void normalize_prefix(const Problem *p, const Work *w, int sample) {
  for (int token = 0; token < p->prefix; token++) {
    const float *kept = statistics_of(p, sample, token), *own = kept + kept_of(p) - 2;
    const float *x = w->x + token * w->x_step;
    float *y = p->y + place_of(p, sample, token, 0), scale = 1 / sqrtf(own[1] + p->eps);
    for (int c = 0; c < channels_of(p); c++) {
      float u = x[c] * (p->rms ? kept[c / p->features] : 1);
      y[c] = (u - own[0]) * scale * p->weight[c] + p->bias[c];
    }
  }
}

static void begin_tokens(const Problem *p, const Work *w, int sample, int from, int to) {
  for (int token = from; token < to; token++) {
    if (is_there(p, sample, token)) {
      token_statistics(p, w, sample, token);
      continue;
    }
    memset(statistics_of(p, sample, token), 0, sizeof(float) * kept_of(p));
    memset(p->y + place_of(p, sample, token, 0), 0, sizeof(float) * channels_of(p));
  }
}

static void normalize_row(const Problem *p, const Work *w, int sample, int head, int y) {
  const Layout *at = &w->at;
  int vectors = w->vectors, channels = w->channels, stride = w->stride;
  int start = at->row_start[y], end = at->row_start[y + 1];
  float mean_ratio = p->mean_logit ? sigmoid(p->mean_logit[head]) : 1, eps = p->eps;
  float variance_ratio = sigmoid(p->variance_logit[head]);
  for (int k = start; k < end; k++) {
    const float *kept = statistics_of(p, sample, at->token[k]) + kept_of(p) - 2;
    const float *around = w->rows + (long)(k - start) * stride;
    const float *centred = w->moments + (long)at->slot[k] * stride;
    float *out = p->y + place_of(p, sample, at->token[k], head) + w->first;
    float own_mean = kept[0], own_variance = kept[1], inverse = w->inverse[k];
    fetch_to_write(p->y + place_ahead(p, w, sample, k, head), channels);
    for (int v = 0; v < vectors; v++) {
      Vec mean = inverse * load(around + v * VL);
      Vec square = inverse * load(around + (vectors + v) * VL);
      Vec variance = at_least_zero(square - mean * mean);
      mean += mean_ratio * (own_mean - load(w->centre + v * VL) - mean);
      variance += variance_ratio * (own_variance - variance);
      Vec z = (load(centred + v * VL) - mean) * inverse_root(variance + eps);
      Vec result = z * load(w->weight + v * VL) + load(w->bias + v * VL);
      store_part(out + v * VL, result, channels - v * VL);
    }
  }
}

static void forward_tile(const Problem *p, const Axis *ay, Work *w, int sample, int head) {
  const Axis *ax = ay + 1;
  lay_out(p, sample, &w->at);
  share_out(w, ay, ax);
  if (head == 0) normalize_prefix(p, w, sample);
  for (int first = 0; first < p->features; first += w->block) {
    begin_block(p, w, head, first);
    pack(p, w, sample, head);
    contract_columns(w, ay, p->width);
    for (int y = 0; y < p->height; y++) {
      contract_row(w, ax, y, w->rows);
      normalize_row(p, w, sample, head, y);
    }
  }
}

#endif
