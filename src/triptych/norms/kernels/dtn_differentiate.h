/* The element-wise part of the backward pass. With z the normalised value,
   t = dL/dz / deviation and e = dL/d(variance). */
#ifndef DTN_DIFFERENTIATE_H
#define DTN_DIFFERENTIATE_H

#include "dtn_tile.h"

/* What a tile hands on to the whole sample, and to the parameters. */
typedef struct {
  float *sums;          /* (batch, tokens, heads, 2): gradients of the token's mean and variance */
  float *weight, *bias; /* (batch, channels) */
  float *scalars;       /* (batch, heads, 5): mean ratio, variance ratio, position weights */
} Partial;

/* Gradients of one head's parameters, gathered over a tile. */
typedef struct {
  float mean_ratio, variance_ratio;
  Vec mean_slope, variance_slope;
  Vec weight[MOST_CHANNELS / VL], bias[MOST_CHANNELS / VL]; /* of the block at hand */
} Slopes;

/* One token and its block of channels. */
typedef struct {
  float mean, variance, inverse;                    /* its own; 1 / share of its kernel */
  const float *around, *centred, *y_gradient;       /* moments around it, its values */
  float *x_gradient, *around_gradient;              /* written */
} Token;

/* Sums over the channels of a token. */
typedef struct {
  Vec mean, variance, constant;
} TokenSums;

INLINE float *sums_of(const Problem *p, const Partial *partial, int sample, int token, int head) {
  return partial->sums + (((long)sample * p->tokens + token) * p->heads + head) * 2;
}

/* Vector v of the token's channels, of which `left` are left. */
INLINE void differentiate_vector(const Work *w, const Token *k, int v, int vectors, int whole,
                                 int left, float eps, Slopes *slopes, TokenSums *sums) {
  const float mean_ratio = slopes->mean_ratio, variance_ratio = slopes->variance_ratio;
  const float inverse = whole ? 1 : k->inverse;
  Vec mean = inverse * load(k->around + v * VL);
  Vec square = inverse * load(k->around + (vectors + v) * VL);
  Vec raw = square - mean * mean, variance = at_least_zero(raw);
  Vec mean_gap = k->mean - load(w->centre + v * VL) - mean, variance_gap = k->variance - variance;
  Vec scale = inverse_root(variance_ratio * variance_gap + (variance + eps));
  Vec z = (load(k->centred + v * VL) - mean - mean_ratio * mean_gap) * scale;
  Vec gradient = load_part(k->y_gradient + v * VL, left);
  Vec t = gradient * load(w->weight + v * VL) * scale, e = -0.5f * t * z * scale;
  slopes->bias[v] += gradient, slopes->weight[v] += gradient * z;
  slopes->mean_slope -= t * mean_gap, slopes->variance_slope += e * variance_gap;
  sums->mean += t, sums->variance += e;
  Vec d_square = (1 - variance_ratio) * unless_negative(raw, e);
  Vec d_mean = (mean_ratio - 1) * t - 2 * mean * d_square;
  if (!whole) sums->constant += mean * d_mean + square * d_square;
  store(k->around_gradient + v * VL, inverse * d_mean);
  store(k->around_gradient + (vectors + v) * VL, inverse * d_square);
  store_part(k->x_gradient + v * VL, t, left);
}

/* The tokens of row y, one block of channels: leaves t in x_gradient and, in `out`, the gradients
   of the mean and the square around each token, which `rows` holds. */
INLINE void differentiate_tokens(const Problem *p, Work *w, const Partial *partial, Slopes *total,
                                 int sample, int head, int y, int vectors, int whole, int channels,
                                 const float *rows, float *out) {
  const Layout *at = &w->at;
  const int stride = 2 * vectors * VL, end = at->row_start[y + 1];
  const float eps = p->eps;
  Slopes slopes = *total;
  for (int k = at->row_start[y]; k < end; k++, rows += stride, out += stride) {
    const float *kept = statistics_of(p, sample, at->token[k]) + kept_of(p) - 2;
    const long place = place_of(p, sample, at->token[k], head) + w->first;
    Token token = {kept[0], kept[1], w->inverse[k], rows, w->moments + (long)at->slot[k] * stride,
                   p->y_gradient + place, p->x_gradient + place, out};
    TokenSums sums = {zero(), zero(), zero()};
    fetch(p->y_gradient + place_ahead(p, w, sample, k, head), channels);
    fetch_to_write(p->x_gradient + place_ahead(p, w, sample, k, head), channels);
    UNROLL for (int v = 0; v < vectors; v++)
      differentiate_vector(w, &token, v, vectors, whole, channels - v * VL, eps, &slopes, &sums);
    float *own = sums_of(p, partial, sample, at->token[k], head);
    own[0] += slopes.mean_ratio * sum_of(sums.mean);
    own[1] += slopes.variance_ratio * sum_of(sums.variance);
    if (!whole) w->slope[k] -= token.inverse * sum_of(sums.constant);
  }
  *total = slopes;
}

/* The common case gets code of its own, in which the sums stay in registers. */
static void differentiate_row(const Problem *p, Work *w, const Partial *partial, Slopes *slopes,
                              int sample, int head, int y, const float *rows, float *out) {
  const int most = MOST_CHANNELS;
  if (w->channels == most && w->whole)
    differentiate_tokens(p, w, partial, slopes, sample, head, y, most / VL, 1, most, rows, out);
  else
    differentiate_tokens(p, w, partial, slopes, sample, head, y, w->vectors, w->whole, w->channels,
                         rows, out);
}

#endif
