// Attention of a few queries, where what counts is that keys and values are read once and fast: cpu-kernels.h's few.
// Written once for vectors of any width. f32-kernels.h includes it where a file has defined before, for __m512, __m256
// or float32x4_t as vec:
//   SUMS                             vectors of sums that the registers hold: a multiple of LANES
//   load_f16, load_bf16, load_i8     LANES numbers of such a type, as floats
//   all_f16                          one F16 number, as a vector
//   add_up(sums)                     lane i of the result: sum over sums[i], i < LANES
// See cpu-kernels.h for what may stand here.

namespace pyvllama {

namespace {

// Bytes ahead of where keys are read. Into L2, as L1 has too few misses under way at a time for what is needed: without
// it, reading and computing take turns.
constexpr int AHEAD = 6144;

inline void prefetch(const char * p) {
    __builtin_prefetch(p, 0, 2);
}

template <stored T>
constexpr int size_of() {  // of a number, in bytes; of q8_0 without the factors
    return T == stored::f32 ? 4 : T == stored::q8_0 ? 1 : 2;
}

// LANES numbers, those of q8_0 without their factor.
template <stored T>
inline vec load_as(const char * p) {
    return T == stored::f32    ? load((const float *) p)
           : T == stored::f16  ? (vec) load_f16(p)
           : T == stored::bf16 ? (vec) load_bf16(p)
                               : (vec) load_i8(p);
}

static_assert(SUMS % LANES == 0 && SUMS <= 16, "rows are as long as a multiple of 16");

// SUMS numbers: the sums over the vectors.
inline void store_sums(const vec (&sums)[SUMS], float * out) {
#pragma GCC unroll 4
    for (int s = 0; s < SUMS; s += LANES) {
        store(out + s, (vec) add_up(sums + s));
    }
}

// scores[r * FEW_KEYS + i] = q_r . k_i for N queries; scores behind the last key are those of no key. SUMS sums at a
// time: of N queries and SUMS / N keys.
template <int N, stored T>
inline void few_scores(const few_part & part, const float * q, float * scores) {
    constexpr int KEYS_AT_ONCE = SUMS / N;
    const int d = part.n_embd_head;
    for (int i = 0; i < part.n_keys; i += KEYS_AT_ONCE) {
        const char * k[KEYS_AT_ONCE];
        vec sums[SUMS];
#pragma GCC unroll 16
        for (int m = 0; m < KEYS_AT_ONCE; ++m) {
            k[m] = part.k + (size_t) (i + m < part.n_keys ? i + m : part.n_keys - 1) * part.k_stride;
        }
#pragma GCC unroll 16
        for (int s = 0; s < SUMS; ++s) {
            sums[s] = all(0.0f);
        }
        // q8_0: blocks of an F16 factor and 32 numbers
        constexpr bool blocks = T == stored::q8_0;
        constexpr int BLOCK = blocks ? 32 : LANES, BLOCK_BYTES = blocks ? 34 : LANES * size_of<T>();
        for (int c = 0, at = 0; c < d; c += BLOCK, at += BLOCK_BYTES) {
            for (int b = 0; b < KEYS_AT_ONCE * BLOCK_BYTES; b += 64) {
                prefetch(k[0] + AHEAD + at * KEYS_AT_ONCE + b);
            }
            vec factor[KEYS_AT_ONCE];
            if (blocks) {
#pragma GCC unroll 16
                for (int m = 0; m < KEYS_AT_ONCE; ++m) {
                    factor[m] = (vec) all_f16(k[m] + at);
                }
            }
#pragma GCC unroll 4
            for (int i = 0; i < BLOCK; i += LANES) {
                vec key[KEYS_AT_ONCE];
#pragma GCC unroll 16
                for (int m = 0; m < KEYS_AT_ONCE; ++m) {
                    key[m] = load_as<T>(k[m] + at + (blocks ? 2 + i : 0));
                    if (blocks) {
                        key[m] *= factor[m];
                    }
                }
#pragma GCC unroll 16
                for (int r = 0; r < N; ++r) {
                    const vec x = load(q + r * d + c + i);
#pragma GCC unroll 16
                    for (int m = 0; m < KEYS_AT_ONCE; ++m) {
                        sums[r * KEYS_AT_ONCE + m] += key[m] * x;
                    }
                }
            }
        }
        float all_sums[SUMS];
        store_sums(sums, all_sums);
        for (int r = 0; r < N; ++r) {
            __builtin_memcpy(scores + r * FEW_KEYS + i, all_sums + r * KEYS_AT_ONCE, KEYS_AT_ONCE * sizeof(float));
        }
    }
}

// out[r * (d + 2) + c] = sum over i of weights[r * FEW_KEYS + i] * v_c[i]: N queries and SUMS / N rows of values at a
// time.
template <int N, stored T>
inline void few_values(const few_part & part, const float * weights, float * out) {
    constexpr int ROWS = SUMS / N, BYTES = size_of<T>();
    const int d = part.n_embd_head, whole = part.n_keys / LANES * LANES;
    for (int c = 0; c < d; c += ROWS) {
        const char * v[ROWS];
        vec sums[SUMS];
#pragma GCC unroll 16
        for (int m = 0; m < ROWS; ++m) {
            v[m] = part.v + (size_t) (c + m) * part.v_stride;
        }
#pragma GCC unroll 16
        for (int s = 0; s < SUMS; ++s) {
            sums[s] = all(0.0f);
        }
        const size_t next = c + ROWS < d ? ROWS * part.v_stride : 0;  // from one of these rows to one of the next
        for (int i = 0; i < whole; i += LANES) {
            vec value[ROWS];
#pragma GCC unroll 16
            for (int m = 0; m < ROWS; ++m) {
                value[m] = load_as<T>(v[m] + i * BYTES);
                if (i * BYTES % 64 == 0) {
                    prefetch(v[m] + next + i * BYTES);
                }
            }
#pragma GCC unroll 16
            for (int r = 0; r < N; ++r) {
                const vec x = load(weights + r * FEW_KEYS + i);
#pragma GCC unroll 16
                for (int m = 0; m < ROWS; ++m) {
                    sums[r * ROWS + m] += value[m] * x;
                }
            }
        }
        if (whole < part.n_keys) {  // nothing is read behind the last one
            char rest[ROWS][LANES * sizeof(float)] = {};
            for (int m = 0; m < ROWS; ++m) {
                __builtin_memcpy(rest[m], v[m] + whole * BYTES, (size_t) (part.n_keys - whole) * BYTES);
            }
#pragma GCC unroll 16
            for (int r = 0; r < N; ++r) {
                const vec x = load(weights + r * FEW_KEYS + whole);
#pragma GCC unroll 16
                for (int m = 0; m < ROWS; ++m) {
                    sums[r * ROWS + m] += load_as<T>(rest[m]) * x;
                }
            }
        }
        float all_sums[SUMS];
        store_sums(sums, all_sums);
        for (int r = 0; r < N; ++r) {
            __builtin_memcpy(out + r * (d + 2) + c, all_sums + r * ROWS, ROWS * sizeof(float));
        }
    }
}

template <int N>
inline void few_queries(const few_part & part, const float * q, float * out) {
    alignas(64) float scores[N * FEW_KEYS];
    switch (part.k_type) {
        case stored::f32:
            few_scores<N, stored::f32>(part, q, scores);
            break;
        case stored::f16:
            few_scores<N, stored::f16>(part, q, scores);
            break;
        case stored::bf16:
            few_scores<N, stored::bf16>(part, q, scores);
            break;
        case stored::q8_0:
            few_scores<N, stored::q8_0>(part, q, scores);
            break;
    }
    for (int m = 0; m < SUMS / N; ++m) {  // the first rows of values, while weights are computed
        for (int b = 0; b < part.n_keys * 2; b += 64) {
            prefetch(part.v + m * part.v_stride + b);
        }
    }
    const int d = part.n_embd_head, padded = (part.n_keys + LANES - 1) / LANES * LANES;
    const vec scale = all(part.scale * 1.44269504f);  // log2(e)
    for (int r = 0; r < N; ++r) {
        float * row = scores + r * FEW_KEYS;
        for (int i = part.n_keys; i < padded; ++i) {
            row[i] = PADDING_BIAS;
        }
        vec tops = load(row);
        for (int i = LANES; i < padded; i += LANES) {
            tops = larger(tops, load(row + i));
        }
        const float top = largest_of(tops);
        vec sum = all(0.0f);
        for (int i = 0; i < padded; i += LANES) {
            const vec p = exp2_of((load(row + i) - top) * scale);
            sum += p;
            store(row + i, p);
        }
        out[r * (d + 2) + d] = top * scale[0];
        out[r * (d + 2) + d + 1] = sum_of(sum);
    }
    switch (part.v_type) {
        case stored::f32:
            few_values<N, stored::f32>(part, scores, out);
            break;
        case stored::f16:
            few_values<N, stored::f16>(part, scores, out);
            break;
        default:
            few_values<N, stored::bf16>(part, scores, out);
    }
}

void few(const few_part & part) {
    const int d = part.n_embd_head;
    int r = 0;
    for (; r + 4 <= part.n_q; r += 4) {
        few_queries<4>(part, part.q + (size_t) r * d, part.out + (size_t) r * (d + 2));
    }
    for (; r + 2 <= part.n_q; r += 2) {
        few_queries<2>(part, part.q + (size_t) r * d, part.out + (size_t) r * (d + 2));
    }
    for (; r < part.n_q; ++r) {
        few_queries<1>(part, part.q + (size_t) r * d, part.out + (size_t) r * (d + 2));
    }
}

}  // namespace

}  // namespace pyvllama
