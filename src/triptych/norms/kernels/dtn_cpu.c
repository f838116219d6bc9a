/* Dynamic Token Normalization on the CPU: the entry points and the order of the work, which is
   tokens, then tiles, then (backward) tokens again. What a piece computes does not depend on the
   thread that computes it, so nor does any bit of the result. */
#include "dtn_finish.h"
#include "dtn_forward.h"
#ifdef _OPENMP
#include <omp.h>
#endif

INLINE void run_whole(const Problem *p, const Axis *ay, Work *w, Partial *partial, int sample,
                      int head) {
  if (partial)
    backward_tile(p, ay, w, partial, sample, head);
  else
    forward_tile(p, ay, w, sample, head);
}

/* A padded sequence is a shorter one: its padding has no part in it, and what is whole has bands
   and shares of 1. */
static void run_padded(const Problem *p, const Axis *ay, Work *w, Partial *partial, int sample,
                       int head, int length) {
  Problem shorter = *p;
  shorter.width = length, shorter.visible = NULL;
  w->shorter[0].side = 1, w->shorter[1].side = length;
  shorten(ay, &w->shorter[0]), shorten(ay + 1, &w->shorter[1]);
  w->whole = 1, w->at.set = -1;
  run_whole(&shorter, w->shorter, w, partial, sample, head);
  w->whole = 0, w->at.set = -1;
}

INLINE void run_tile(const Problem *p, const Axis *axes, Work *w, Partial *partial, int sample,
                     int head) {
  int length = length_of(p, sample);
  if (length)
    run_padded(p, &axes[2 * head], w, partial, sample, head, length);
  else
    run_whole(p, &axes[2 * head], w, partial, sample, head);
}

/* Sample by sample, so that a sample stays in the cache. */
static void run_samples(const Problem *p, const Axis *axes, Work *w, Partial *partial, int from,
                        int to) {
  for (int sample = from; sample < to; sample++) {
    open_sample(p, w, sample);
    if (!partial) begin_tokens(p, w, sample, 0, p->tokens);
    for (int head = 0; head < p->heads; head++) run_tile(p, axes, w, partial, sample, head);
    if (partial) finish_tokens(p, w, partial, sample, 0, p->tokens);
  }
}

#ifdef _OPENMP
INLINE int share_of(int total, int part, int parts) { return (int)((long)total * part / parts); }

/* The tokens of one sample, those that fall to one of several threads. */
static void run_tokens(const Problem *p, Work *w, Partial *partial, int sample, int part,
                       int parts) {
  int from = share_of(p->tokens, part, parts), to = share_of(p->tokens, part + 1, parts);
  open_sample(p, w, sample);
  if (partial)
    finish_tokens(p, w, partial, sample, from, to);
  else
    begin_tokens(p, w, sample, from, to);
}

/* Too few samples for all threads: each phase is split by itself. */
static void run_split(const Problem *p, const Axis *axes, Work *w, Partial *partial, int me,
                      int threads) {
  int tiles = p->batch * p->heads, chunks = p->batch * threads;
  for (int i = me; w && !partial && i < chunks; i += threads)
    run_tokens(p, w, partial, i / threads, i % threads, threads);
#pragma omp barrier
  for (int i = me; w && i < tiles; i += threads) {
    open_sample(p, w, i / p->heads);
    run_tile(p, axes, w, partial, i / p->heads, i % p->heads);
  }
#pragma omp barrier
  for (int i = me; w && partial && i < chunks; i += threads)
    run_tokens(p, w, partial, i / threads, i % threads, threads);
}
#endif

static int run_threads(const Problem *p, const Axis *axes, Partial *partial) {
  int failed = 0;
#ifdef _OPENMP
#pragma omp parallel num_threads(p->threads) if (p->threads > 1) reduction(| : failed)
  {
    int me = omp_get_thread_num(), threads = omp_get_num_threads();
    Work *w = make_work(p, partial != NULL);
    failed |= !w;
    if (p->batch % threads && p->batch < 4 * threads)
      run_split(p, axes, w, partial, me, threads);
    else if (w)
      run_samples(p, axes, w, partial, share_of(p->batch, me, threads),
                  share_of(p->batch, me + 1, threads));
    free(w);
  }
#else
  Work *w = make_work(p, partial != NULL);
  failed = !w;
  if (w) run_samples(p, axes, w, partial, 0, p->batch);
  free(w);
#endif
  return failed;
}

static int run(const Problem *p, Partial *partial) {
  Axis *axes = make_axes(p);
  if (!axes) return 1;
  int failed = run_threads(p, axes, partial);
  free(axes);
  return failed;
}

/* 0, or 1 if there was no memory. */
int dtn_forward(const Problem *p) { return run(p, NULL); }

/* The least share of its kernel that a token holds itself, over all heads; -1 without memory.
   With hidden tokens the sums are divided by a share that is never below it. */
float dtn_own_share(const Problem *p) {
  Axis *axes = make_axes(p);
  if (!axes) return -1;
  float least = 1;
  for (int h = 0; h < p->heads; h++) {
    float low[2] = {1, 1};
    for (int a = 0; a < 2; a++)
      for (int i = 0; i < axes[2 * h + a].side; i++) {
        float own = axes[2 * h + a].share[i * (axes[2 * h + a].side + 1)];
        if (own < low[a]) low[a] = own;
      }
    if (low[0] * low[1] < least) least = low[0] * low[1];
  }
  free(axes);
  return least;
}

/* 0, or 1 if there was no memory. All gradients are written. */
int dtn_backward(const Problem *p) {
  size_t sums = (size_t)p->batch * p->tokens * p->heads * 2;
  size_t channels = (size_t)p->batch * channels_of(p), scalars = (size_t)p->batch * p->heads * 5;
  float *memory = calloc(sums + 2 * channels + scalars + 1, sizeof(float));
  if (!memory) return 1;
  Partial partial = {memory, memory + sums, memory + sums + channels,
                     memory + sums + 2 * channels};
  int failed = run(p, &partial);
  if (!failed) gather(p, &partial);
  free(memory);
  return failed;
}
