/* The end of the backward pass: through the statistics of each token, and over the samples. */
#ifndef DTN_FINISH_H
#define DTN_FINISH_H

#include "dtn_backward.h"

/* Adds what mean and variance of the token send back, then goes through the RMS step. */
static void finish_token(const Problem *p, const Work *w, const Partial *partial, int sample,
                         int token) {
  const float *kept = statistics_of(p, sample, token), *own = kept + kept_of(p) - 2;
  const float *sums = partial->sums + ((long)sample * p->tokens + token) * p->heads * 2;
  const int features = p->features, heads = p->heads, rms = p->rms;
  float mean_slope = 0, variance_slope = 0, channels = (float)channels_of(p), mean = own[0];
  for (int h = 0; h < heads; h++)
    mean_slope -= sums[2 * h], variance_slope += sums[2 * h + 1];
  mean_slope /= channels;
  variance_slope *= 2 / (channels - (float)p->unbiased);
  for (int h = 0; h < heads; h++) {
    const float *x = w->x + token * w->x_step + (long)h * features;
    float *out = p->x_gradient + place_of(p, sample, token, h), factor = rms ? kept[h] : 1;
    Vec along = zero();
    for (int d = 0; d < features; d += VL) {
      int left = features - d;
      Vec u = factor * load_part(x + d, left), sent = load_part(out + d, left);
      sent += mean_slope + variance_slope * (u - mean);
      along += sent * u;
      store_part(out + d, sent, left);
    }
    if (!rms) continue;
    float mean_along = sum_of(along) / (float)features;
    for (int d = 0; d < features; d += VL) {
      int left = features - d;
      Vec u = factor * load_part(x + d, left);
      store_part(out + d, factor * (load_part(out + d, left) - mean_along * u), left);
    }
  }
}

static void finish_tokens(const Problem *p, const Work *w, const Partial *partial, int sample,
                          int from, int to) {
  for (int token = from; token < to; token++)
    if (is_there(p, sample, token))
      finish_token(p, w, partial, sample, token);
    else
      memset(p->x_gradient + place_of(p, sample, token, 0), 0, sizeof(float) * channels_of(p));
}

/* out[i] = sum over samples of part[sample*count + step*i], always in the same order. */
static void over_samples(int samples, int count, const float *part, int step, int columns,
                         float *out, int out_step) {
  for (int i = 0; out && i < columns; i++) {
    double total = 0;
    for (int sample = 0; sample < samples; sample++)
      total += part[(long)sample * count + (long)step * i];
    out[out_step * i] = (float)total;
  }
}

static void gather(const Problem *p, const Partial *partial) {
  int channels = channels_of(p), scalars = 5 * p->heads;
  over_samples(p->batch, channels, partial->weight, 1, channels, p->weight_gradient, 1);
  over_samples(p->batch, channels, partial->bias, 1, channels, p->bias_gradient, 1);
  over_samples(p->batch, scalars, partial->scalars, 5, p->heads, p->mean_gradient, 1);
  over_samples(p->batch, scalars, partial->scalars + 1, 5, p->heads, p->variance_gradient, 1);
  for (int i = 0; i < 3; i++)
    over_samples(p->batch, scalars, partial->scalars + 2 + i, 5, p->heads,
                 p->position_gradient + i, 3);
}

#endif
