/* The two products that the statistics are made of, blocked so that sums stay in registers. */
#ifndef DTN_PRODUCTS_H
#define DTN_PRODUCTS_H

#include "dtn_simd.h"

/* out[m] = sum over k in [from, to) of a[k*lda + m] * b[k], rows of b and out VECTORS long. */
INLINE void combine_block(int rows, int vectors, int from, int to, const float *a, long lda,
                          const float *b, long ldb, float *out, long ldo) {
  Vec sum[6][4];
  UNROLL for (int m = 0; m < rows; m++) UNROLL for (int n = 0; n < vectors; n++) sum[m][n] = zero();
  for (int k = from; k < to; k++) {
    Vec source[4];
    UNROLL for (int n = 0; n < vectors; n++) source[n] = load(b + k * ldb + n * VL);
    UNROLL for (int m = 0; m < rows; m++) {
      float share = a[k * lda + m];
      UNROLL for (int n = 0; n < vectors; n++) sum[m][n] += share * source[n];
    }
  }
  UNROLL for (int m = 0; m < rows; m++)
    UNROLL for (int n = 0; n < vectors; n++) store(out + m * ldo + n * VL, sum[m][n]);
}

static void combine_rows(int rows, int vectors, int from, int to, const float *a, long lda,
                         const float *b, long ldb, float *out, long ldo) {
#define CASE(M, N)                                                             \
  case M:                                                                      \
    combine_block(M, N, from, to, a, lda, b + n * VL, ldb, out + n * VL, ldo); \
    break;
  int n = 0;
  if (rows <= WIDE_BLOCK)
    for (; n + 4 <= vectors; n += 4) switch (rows) { CASE(1, 4) CASE(2, 4) CASE(3, 4) CASE(4, 4) }
  for (; n < vectors; n += 2)
    switch (rows) {
      CASE(1, 2) CASE(2, 2) CASE(3, 2) CASE(4, 2) CASE(5, 2) CASE(6, 2)
    }
#undef CASE
}

/* Which sources matter for each target: [low, high); NULL for all. */
typedef struct {
  const int *low, *high;
} Band;

/* out (targets x vectors) = a' b: every target a sum over sources, a[source*lda + target].
   The number of vectors is even. */
static void combine(int targets, int sources, int vectors, const float *a, long lda, Band band,
                    const float *b, long ldb, float *out, long ldo) {
  int blocks = (targets + BLOCK - 1) / BLOCK;
  for (int block = 0, m = 0; block < blocks; block++) {
    int rows = (targets - m + blocks - block - 1) / (blocks - block);
    int from = 0, to = sources;
    if (band.low) {
      from = sources, to = 0;
      for (int i = m; i < m + rows; i++) {
        if (band.low[i] < from) from = band.low[i];
        if (band.high[i] > to) to = band.high[i];
      }
    }
    combine_rows(rows, vectors, from, to, a + m, lda, b, ldb, out + m * ldo, ldo);
    m += rows;
  }
}

/* Rows of floats: row i of group g begins at data + g*group + i*row. */
typedef struct {
  const float *data;
  long row, group;
  const int *index; /* which column or row of the kernel each one belongs to */
  int count;
} Rows;

INLINE void correlate_block(int rows, int columns, int vectors, int groups, const Rows *a, int i,
                            const Rows *b, int j, float *total, int side) {
  Vec sum[CORNER][CORNER];
  UNROLL for (int m = 0; m < rows; m++) UNROLL for (int n = 0; n < columns; n++)
      sum[m][n] = load(total + ((long)a->index[i + m] * side + b->index[j + n]) * VL);
  for (int g = 0; g < groups; g++) {
    const float *p = a->data + g * a->group + i * a->row;
    const float *q = b->data + g * b->group + j * b->row;
    for (int v = 0; v < vectors; v++) {
      Vec left[CORNER];
      UNROLL for (int m = 0; m < rows; m++) left[m] = load(p + m * a->row + v * VL);
      UNROLL for (int n = 0; n < columns; n++) {
        Vec right = load(q + n * b->row + v * VL);
        UNROLL for (int m = 0; m < rows; m++) sum[m][n] += left[m] * right;
      }
    }
  }
  UNROLL for (int m = 0; m < rows; m++) UNROLL for (int n = 0; n < columns; n++)
      store(total + ((long)a->index[i + m] * side + b->index[j + n]) * VL, sum[m][n]);
}

static void correlate_corner(int rows, int columns, int vectors, int groups, const Rows *a, int i,
                             const Rows *b, int j, float *total, int side) {
#define CASE(M, N)                                                   \
  case 8 * M + N:                                                    \
    correlate_block(M, N, vectors, groups, a, i, b, j, total, side); \
    break;
#define CASES(M) CASE(M, 1) CASE(M, 2) CASE(M, 3)
  switch (8 * rows + columns) {
    CASES(1) CASES(2) CASES(3)
#if CORNER > 3
    CASE(1, 4) CASE(2, 4) CASE(3, 4) CASES(4) CASE(4, 4)
    CASE(1, 5) CASE(2, 5) CASE(3, 5) CASE(4, 5) CASES(5) CASE(5, 4) CASE(5, 5)
#endif
  }
#undef CASES
#undef CASE
}

/* total[source][target] += a_source . b_target, one vector of partial sums each; what lies
   outside the band is left out, as its kernel is 0. */
static void correlate(const Rows *a, const Rows *b, int vectors, int groups, Band band,
                      float *total, int side) {
  int across = (b->count + CORNER - 1) / CORNER, down = (a->count + CORNER - 1) / CORNER;
  for (int column = 0, j = 0; column < across; column++) {
    int columns = (b->count - j + across - column - 1) / (across - column);
    for (int row = 0, i = 0; row < down; row++) {
      int rows = (a->count - i + down - row - 1) / (down - row), wanted = !band.low;
      for (int n = j; !wanted && n < j + columns; n++)
        wanted = i < band.high[n] && i + rows > band.low[n];
      if (wanted) correlate_corner(rows, columns, vectors, groups, a, i, b, j, total, side);
      i += rows;
    }
    j += columns;
  }
}

#endif
