// Products on the tile registers that some processors have (Intel's AMX): 16 rows of at most 16 units times as many rows
// of 16 columns at a time. A sum is taken in the same order whatever the rows and columns beside it.
//
// Rows of the left matrix are read up to a multiple of BLOCK_ROWS, so its memory must reach that far; what they hold does
// not matter.

#pragma once

#include "arithmetic.h"

#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__linux__)
#define HAS_TILES 1

#include <sys/syscall.h>
#include <unistd.h>

namespace {

constexpr int64_t BLOCK_ROWS = 16, BLOCK_UNITS = 16;

// Whether Linux lets this process use the registers; a process has to ask.
inline bool may_use_tiles() {
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;
    static const bool granted = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
    return granted;
}

// Registers 0 to 3 are results, 4 rows and 5 columns; 6 and 7 are the same for the units that are left of a sum, which
// are fewer than BLOCK_UNITS.
struct alignas(64) Shapes {
    uint8_t palette = 1, start = 0, unused[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};

    explicit Shapes(int64_t left) {
        for (int i = 0; i < 8; i++) bytes[i] = 64, rows[i] = 16;
        if (left) bytes[6] = static_cast<uint16_t>(4 * left), rows[7] = static_cast<uint8_t>(left);
    }
};

thread_local int64_t shaped = -1;  // for so many units that are left; -1: not at all

inline void shape_tiles(int64_t left) {
    if (shaped == left || (left == 0 && shaped > 0)) return;
    const Shapes shapes(left);
    _tile_loadconfig(&shapes);
    shaped = left;
}

// The registers of a thread while this lives; other code may have left them in other shapes.
struct Tiles {
    Tiles() { shaped = -1; }
    ~Tiles() {
        if (shaped >= 0) _tile_release();
        shaped = -1;
    }
};

// Register `to` += register `rows` times register `columns`. Numbers of registers are part of the instructions.
#define ADD_PRODUCT(to, rows, columns)                                    \
    do {                                                                  \
        if constexpr (T::CELLS == 2) _tile_dpbf16ps(to, rows, columns);   \
        else _tile_dpbusd(to, rows, columns);                             \
    } while (0)

// Two blocks of rows times two of columns, or one where there is no second, for one step of the sum.
#define STEP(rows, columns)                                               \
    do {                                                                  \
        _tile_loadd(rows, left, left_bytes);                              \
        _tile_loadd(columns, right, right_bytes);                         \
        ADD_PRODUCT(0, rows, columns);                                    \
        if constexpr (TALL) {                                             \
            _tile_loadd(rows, left + BLOCK_ROWS * left_step, left_bytes); \
            ADD_PRODUCT(2, rows, columns);                                \
        }                                                                 \
        if constexpr (WIDE) {                                             \
            _tile_loadd(columns, right + W, right_bytes);                 \
            if constexpr (TALL) ADD_PRODUCT(3, rows, columns);            \
            if constexpr (TALL) _tile_loadd(rows, left, left_bytes);      \
            ADD_PRODUCT(1, rows, columns);                                \
        }                                                                 \
    } while (0)

// to (16 or 32, 16 or 32) = left (.., K) right (K, ..), or added to what is there; all steps in units. While it is
// computed, `lines` cache lines come from memory for each step of the sum.
template <class T, bool TALL, bool WIDE>
void block_product(
    const float* left, int64_t left_step, const float* right, int64_t right_step, int64_t K, const float* ahead,
    int64_t lines, float* to, int64_t to_step, bool add) {
    const int64_t left_bytes = 4 * left_step, right_bytes = 4 * right_step, to_bytes = 4 * to_step;
    float* const below = to + BLOCK_ROWS * to_step;
    if (add) {
        _tile_loadd(0, to, to_bytes);
        if constexpr (WIDE) _tile_loadd(1, to + W, to_bytes);
        if constexpr (TALL) _tile_loadd(2, below, to_bytes);
        if constexpr (TALL && WIDE) _tile_loadd(3, below + W, to_bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    int64_t k = 0;
    for (; k + BLOCK_UNITS <= K; k += BLOCK_UNITS, left += BLOCK_UNITS, right += BLOCK_UNITS * right_step) {
        for (int64_t i = 0; i < lines; i++, ahead += W) __builtin_prefetch(ahead, 0, 2);
        STEP(4, 5);
    }
    if (k < K) STEP(6, 7);
    _tile_stored(0, to, to_bytes);
    if constexpr (WIDE) _tile_stored(1, to + W, to_bytes);
    if constexpr (TALL) _tile_stored(2, below, to_bytes);
    if constexpr (TALL && WIDE) _tile_stored(3, below + W, to_bytes);
}

#undef STEP
#undef ADD_PRODUCT

}  // namespace
#else
#define HAS_TILES 0

namespace {

inline bool may_use_tiles() { return false; }
struct Tiles {
    Tiles() {}
};

}  // namespace
#endif
