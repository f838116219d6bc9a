/* Tokens whose channels do not lie side by side, as after a convolution, are brought together. */
#ifndef DTN_COPY_H
#define DTN_COPY_H

#include "dtn_problem.h"

/* Row i becomes lane i of every row: in step s, bit s of row and lane change places. */
INLINE void transpose(Vec *row) {
#if defined(__clang__)
  float corner[VL][VL];
  for (int i = 0; i < VL; i++) store(corner[i], row[i]);
  for (int i = 0; i < VL; i++)
    for (int lane = 0; lane < VL; lane++) row[i][lane] = corner[lane][i];
#else
  UNROLL for (int s = 1; s < VL; s *= 2) {
    VecBits low, high;
    for (int lane = 0; lane < VL; lane++) {
      low[lane] = lane & s ? VL + lane - s : lane;
      high[lane] = lane & s ? VL + lane : lane + s;
    }
    _Pragma("GCC unroll 16") for (int i = 0; i < VL; i++) {
      if (i & s) continue;
      Vec upper = row[i], lower = row[i + s];
      row[i] = __builtin_shuffle(upper, lower, low);
      row[i + s] = __builtin_shuffle(upper, lower, high);
    }
  }
#endif
}

/* out[token][channel] = in[channel*step + token] */
static void copy_tokens(const float *in, long step, int tokens, int channels, float *out) {
  for (int c = 0; c < channels; c += VL) {
    int rows = channels - c < VL ? channels - c : VL;
    for (int t = 0; t < tokens; t += VL) {
      int columns = tokens - t < VL ? tokens - t : VL;
      Vec row[VL];
      for (int i = 0; i < VL; i++)
        row[i] = i < rows ? load_part(in + (c + i) * step + t, columns) : zero();
      transpose(row);
      for (int i = 0; i < columns; i++) store_part(out + (long)(t + i) * channels + c, row[i], rows);
    }
  }
}

#endif
