// The attention of cpu-kernels.h, written once for F32 and bf16. A file that includes this defines before:
//   element                        float, or uint16_t for bf16
//   LANES, GROUP, VECTORS          floats of a vector; queries at once; vectors of a panel: GROUP * VECTORS sums
//   PANEL, PANELS                  keys of a panel; panels of a block
//   STEP                           rows of b that lie interleaved
//   vec, load, store, all, larger, largest_of, exp2_of        vectors of F32
//   multiply(acc, a, b, width, n)  acc[r][j] += sum over i of a[r][i] * b[i][j], b having width columns
//   weigh(scores, n, scale, top, weights)  weights = 2^((scores - top) * scale), as elements; returns their sum
//   write(sums, n, share, out)     out = sums * share, as elements
// See cpu-kernels.h for what may stand here.

namespace pyvllama {

namespace {

constexpr int KEYS = PANEL * PANELS;

struct head_rows {
    alignas(64) float out[(MAX_QUERIES + GROUP) * MAX_EMBD_HEAD];  // sums of values, not divided yet
    float top[MAX_QUERIES + GROUP];                                // largest score so far
    float sum[MAX_QUERIES + GROUP];                                // of weights, relative to it
};

// Scores of GROUP queries -> weights; what was summed up so far is scaled to the new largest score.
inline void softmax(float * scores, const vec (&tops)[GROUP], int n_keys, float scale, int first, int padded,
                    head_rows & rows, element * weights) {
    for (int r = 0; r < GROUP; ++r) {
        const float before = rows.top[first + r], seen = largest_of(tops[r]);
        const float top = seen > before ? seen : before;
        if (top > before) {
            const vec shrink = exp2_of(all((before - top) * scale));
            float * out = rows.out + (size_t) (first + r) * padded;
            for (int d = 0; d < padded; d += LANES) {
                store(out + d, load(out + d) * shrink);
            }
            rows.sum[first + r] *= shrink[0];
            rows.top[first + r] = top;
        }
        rows.sum[first + r] += weigh(scores + r * KEYS, n_keys, scale, top, weights + r * KEYS);
    }
}

template <int N>
inline void add_values(float * out, int padded, const element * const (&weights)[GROUP], const element * v, int n) {
    vec acc[GROUP][N];
#pragma GCC unroll 8
    for (int r = 0; r < GROUP; ++r) {
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) {
            acc[r][j] = load(out + r * padded + LANES * j);
        }
    }
    multiply(acc, weights, v, padded, n);
#pragma GCC unroll 8
    for (int r = 0; r < GROUP; ++r) {
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) {
            store(out + r * padded + LANES * j, acc[r][j]);
        }
    }
}

void attend(const attention_part<element> & part) {
    const int d = part.n_embd_head, padded = (d + LANES - 1) / LANES * LANES;
    const int n_panels = (part.n_k + PANEL - 1) / PANEL;
    const int n_rows = (part.n_q + GROUP - 1) / GROUP * GROUP;  // the last query again where there are no more
    const float scale = part.scale * 1.44269504f;               // log2(e)
    head_rows rows;
    for (int r = 0; r < n_rows; ++r) {
        rows.top[r] = 2 * PADDING_BIAS;
        rows.sum[r] = 0;
        for (int i = 0; i < padded; ++i) {
            rows.out[(size_t) r * padded + i] = 0;
        }
    }
    alignas(64) float scores[GROUP * KEYS];
    constexpr bool in_place = sizeof(element) == sizeof(float);
    alignas(64) element others[in_place ? 1 : GROUP * KEYS];
    element * weights = in_place ? (element *) scores : others;
    const element * weight_rows[GROUP];
    for (int r = 0; r < GROUP; ++r) {
        weight_rows[r] = weights + r * KEYS;
    }
    for (int block = 0; block < n_panels; block += PANELS) {
        const int n = n_panels - block < PANELS ? n_panels - block : PANELS;
        const element * v = part.v + (size_t) block * PANEL * padded;
        for (int first = 0; first < n_rows; first += GROUP) {
            const element * q[GROUP];
            vec tops[GROUP];
            for (int r = 0; r < GROUP; ++r) {
                q[r] = part.q + (size_t) (first + r < part.n_q ? first + r : part.n_q - 1) * part.q_stride;
                tops[r] = all(2 * PADDING_BIAS);
            }
            for (int i = 0; i < n; ++i) {
                vec acc[GROUP][VECTORS];
#pragma GCC unroll 8
                for (int r = 0; r < GROUP; ++r) {
#pragma GCC unroll 8
                    for (int j = 0; j < VECTORS; ++j) {
                        acc[r][j] = load(part.key_bias + (block + i) * PANEL + LANES * j);
                    }
                }
                multiply(acc, q, part.k + (size_t) (block + i) * PANEL * d, PANEL, d);
#pragma GCC unroll 8
                for (int r = 0; r < GROUP; ++r) {
#pragma GCC unroll 8
                    for (int j = 0; j < VECTORS; ++j) {
                        store(scores + r * KEYS + i * PANEL + LANES * j, acc[r][j]);
                        tops[r] = larger(tops[r], acc[r][j]);
                    }
                }
            }
            softmax(scores, tops, n * PANEL, scale, first, padded, rows, weights);
            float * out = rows.out + (size_t) first * padded;
            int j = 0;
            for (; j + VECTORS <= padded / LANES; j += VECTORS) {
                add_values<VECTORS>(out + LANES * j, padded, weight_rows, v + STEP * LANES * j, n * PANEL);
            }
            for (; j < padded / LANES; ++j) {
                add_values<1>(out + LANES * j, padded, weight_rows, v + STEP * LANES * j, n * PANEL);
            }
        }
    }
    for (int r = 0; r < part.n_q; ++r) {
        write(rows.out + (size_t) r * padded, d, 1.0f / rows.sum[r], part.out + r * part.out_stride);
    }
}

}  // namespace

}  // namespace pyvllama
