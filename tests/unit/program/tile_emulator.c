/* Sources: SDM Vol. 2, LDTILECFG, STTILECFG, TILELOADD, TILESTORED, TILEZERO, TILERELEASE, TDPBSSD, RDPKRU, WRPKRU, XSAVEC;
 * which rows and bytes they zero, and when they raise #UD instead: measured on Emerald Rapids. */
#define _GNU_SOURCE
#include "tile_emulator.h"

#include <stdbool.h>
#include <string.h>

enum { PALETTE = 0, START_ROW = 1, WIDTHS_AT = 16, ROWS_AT = 48, INITIAL_PKRU = 0x55555554 };
enum { COMPACTED_AT = 576, XSTATE_BV = 512, XCOMP_BV = 520, TILEDATA_BIT = 18 };

struct tile_state emulated = {.pkru = INITIAL_PKRU};

struct instruction {
    const unsigned char *start;
    unsigned prefix; /* VEX.pp: none, 66, F3, F2 */
    unsigned opcode, vvvv, mod, reg, rm;
    bool has_sib;
    unsigned char *address; /* of a memory operand; for tiles of its first row */
    uint64_t stride;
    size_t length;
};

static uint64_t general(const ucontext_t *context, unsigned number)
{
    static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return (uint64_t)context->uc_mcontext.gregs[order[number]];
}

/* ModRM, SIB and displacement in 64-bit mode (SDM Vol. 2, 2.1.5 and 2.2.1); `bits` are R, X and B of the prefix. */
static void decode_operands(const ucontext_t *context, const unsigned char *modrm, unsigned bits,
                            struct instruction *found)
{
    const unsigned char *at = modrm + 1;
    int64_t displacement = 0;
    uint64_t base = 0;
    found->mod = *modrm >> 6;
    found->reg = (*modrm >> 3 & 7) | (bits & 4) << 1;
    found->rm = (*modrm & 7) | (bits & 1) << 3;
    found->has_sib = found->mod != 3 && (*modrm & 7) == 4;
    found->stride = 0;
    if (found->mod == 3) {
        found->length = (size_t)(at - found->start);
        return;
    }
    bool no_base = false, relative = false;
    if (found->has_sib) {
        unsigned sib = *at++, index = (sib >> 3 & 7) | (bits & 2) << 2, number = (sib & 7) | (bits & 1) << 3;
        if (index != 4)
            found->stride = general(context, index) << (sib >> 6);
        no_base = found->mod == 0 && (sib & 7) == 5;
        base = no_base ? 0 : general(context, number);
    } else if (found->mod == 0 && (*modrm & 7) == 5) {
        relative = true;
    } else {
        base = general(context, found->rm);
    }
    if (found->mod == 1) {
        displacement = (signed char)*at++;
    } else if (found->mod == 2 || no_base || relative) {
        int32_t value;
        memcpy(&value, at, sizeof value);
        displacement = value;
        at += sizeof value;
    }
    found->length = (size_t)(at - found->start);
    if (relative)
        base = (uint64_t)at;
    found->address = (unsigned char *)(base + (uint64_t)displacement);
}

/* VEX.128.0F38.W0, the only form that tile instructions have. */
static bool decode_vex(const ucontext_t *context, struct instruction *found)
{
    const unsigned char *code = found->start;
    if (code[0] != 0xC4 || (code[1] & 0x1F) != 2 || code[2] & 0x84)
        return false;
    found->prefix = code[2] & 3;
    found->vvvv = ~(code[2] >> 3) & 15;
    found->opcode = code[3];
    decode_operands(context, code + 4, ~(code[1] >> 5) & 7, found);
    return true;
}

static unsigned width_of(unsigned tile)
{
    return emulated.configuration[WIDTHS_AT + 2 * tile] | emulated.configuration[WIDTHS_AT + 2 * tile + 1] << 8;
}

static unsigned rows_of(unsigned tile)
{
    return emulated.configuration[ROWS_AT + tile];
}

static bool usable(unsigned tile)
{
    return emulated.configuration[PALETTE] == 1 && tile < TILES && width_of(tile) && rows_of(tile);
}

static bool is_legal(const unsigned char *data)
{
    for (unsigned i = 0; i < TILE_ROW; i++)
        if (((i > START_ROW && i < WIDTHS_AT) || (i >= WIDTHS_AT + 16 && i < ROWS_AT) || i >= ROWS_AT + TILES) && data[i])
            return false;
    for (unsigned tile = 0; tile < TILES; tile++) {
        unsigned width = data[WIDTHS_AT + 2 * tile] | data[WIDTHS_AT + 2 * tile + 1] << 8, rows = data[ROWS_AT + tile];
        if (width > TILE_ROW || rows > TILE_ROWS || !width != !rows)
            return false;
    }
    return data[PALETTE] == 1;
}

static void release(void)
{
    memset(emulated.configuration, 0, sizeof emulated.configuration);
    memset(emulated.tiles, 0, sizeof emulated.tiles);
    emulated.in_use = false;
}

static enum emulation configure(const unsigned char *data)
{
    if (data[PALETTE] && !is_legal(data))
        return RAISES_GP;
    release();
    if (data[PALETTE])
        memcpy(emulated.configuration, data, sizeof emulated.configuration);
    return EMULATED;
}

/* Opcode 49: with a memory operand a configuration goes in or out, with a register a tile becomes zero, or all. */
static enum emulation configuration_group(const struct instruction *found)
{
    enum { NONE = 0, P66 = 1, F2 = 3 };
    if (found->vvvv)
        return NOT_EMULATED;
    if (found->mod != 3) {
        if (found->reg)
            return NOT_EMULATED;
        if (found->prefix == NONE)
            return configure(found->address + found->stride);
        if (found->prefix != P66)
            return NOT_EMULATED;
        memcpy(found->address + found->stride, emulated.configuration, sizeof emulated.configuration);
        return EMULATED;
    }
    if (found->prefix == NONE && !found->reg && !found->rm) {
        release();
        return EMULATED;
    }
    if (found->prefix != F2 || found->rm)
        return NOT_EMULATED;
    if (!usable(found->reg))
        return RAISES_UD;
    memset(emulated.tiles[found->reg], 0, TILE_SIZE);
    emulated.configuration[START_ROW] = 0;
    emulated.in_use = true;
    return EMULATED;
}

/* Opcode 4B: rows and bytes beyond the tile's shape become zero on a load, and are not stored. */
static enum emulation move(const struct instruction *found)
{
    enum { NONE = 0, F3 = 2 };
    unsigned tile = found->reg, start = emulated.configuration[START_ROW];
    if (found->prefix == NONE || found->mod == 3 || !found->has_sib || found->vvvv)
        return NOT_EMULATED;
    if (!usable(tile) || width_of(tile) % 4 || start >= rows_of(tile))
        return RAISES_UD;
    for (unsigned row = start; row < TILE_ROWS; row++) {
        unsigned char *memory = found->address + row * found->stride, *here = emulated.tiles[tile][row];
        if (found->prefix == F3) {
            if (row < rows_of(tile))
                memcpy(memory, here, width_of(tile));
            continue;
        }
        memset(here, 0, TILE_ROW);
        if (row < rows_of(tile))
            memcpy(here, memory, width_of(tile));
    }
    if (found->prefix != F3)
        emulated.in_use = true;
    emulated.configuration[START_ROW] = 0;
    return EMULATED;
}

/* Opcode 5E with F2, TDPBSSD: rm by vvvv is added to reg. */
static enum emulation multiply(const struct instruction *found)
{
    enum { F2 = 3 };
    unsigned sum = found->reg, left = found->rm, right = found->vvvv;
    if (found->prefix != F2 || found->mod != 3)
        return NOT_EMULATED;
    if (!usable(sum) || !usable(left) || !usable(right) || sum == left || sum == right || left == right ||
        width_of(sum) % 4 || width_of(left) % 4 || width_of(right) % 4 || rows_of(sum) != rows_of(left) ||
        width_of(sum) != width_of(right) || width_of(left) / 4 != rows_of(right))
        return RAISES_UD;
    for (unsigned row = 0; row < TILE_ROWS; row++) {
        int32_t values[TILE_ROW / 4] = {0};
        if (row < rows_of(sum)) {
            memcpy(values, emulated.tiles[sum][row], width_of(sum));
            for (unsigned n = 0; n < width_of(sum) / 4; n++)
                for (unsigned k = 0; k < width_of(left); k++) {
                    int a = (signed char)emulated.tiles[left][row][k];
                    int b = (signed char)emulated.tiles[right][k / 4][4 * n + k % 4];
                    values[n] = (int32_t)((uint32_t)values[n] + (uint32_t)(a * b));
                }
        }
        memcpy(emulated.tiles[sum][row], values, TILE_ROW);
    }
    emulated.configuration[START_ROW] = 0;
    return EMULATED;
}

/* RDPKRU and WRPKRU: 0F 01 EE and EF. */
static enum emulation protection_keys(ucontext_t *context, bool write)
{
    greg_t *registers = context->uc_mcontext.gregs;
    if (registers[REG_RCX] & 0xFFFFFFFF || (write && registers[REG_RDX] & 0xFFFFFFFF))
        return RAISES_GP;
    if (write) {
        emulated.pkru = (uint32_t)registers[REG_RAX];
    } else {
        registers[REG_RAX] = emulated.pkru;
        registers[REG_RDX] = 0;
    }
    return EMULATED;
}

/* Only of TILEDATA alone: it is written where it is in use, right behind the header. */
static enum emulation save_compacted(const ucontext_t *context, unsigned char *area)
{
    const uint64_t requested = general(context, 0) & 0xFFFFFFFF, in_use = (uint64_t)emulated.in_use << TILEDATA_BIT;
    const uint64_t compacted = 1ull << 63 | requested;
    if (requested != 1u << TILEDATA_BIT || general(context, 2) & 0xFFFFFFFF)
        return NOT_EMULATED;
    if ((uintptr_t)area % 64)
        return RAISES_GP;
    memcpy(area + XSTATE_BV, &in_use, sizeof in_use);
    memcpy(area + XCOMP_BV, &compacted, sizeof compacted);
    if (emulated.in_use)
        memcpy(area + COMPACTED_AT, emulated.tiles, sizeof emulated.tiles);
    return EMULATED;
}

void intercept_xsavec(unsigned char *code, size_t size)
{
    for (size_t i = 0; i + 2 < size; i++)
        if (code[i] == 0x0F && code[i + 1] == 0xC7 && (code[i + 2] >> 3 & 7) == 4 && code[i + 2] >> 6 != 3)
            code[i + 1] = 0x0B; /* UD2, and the operand stays where it is */
}

enum emulation emulate(ucontext_t *context)
{
    const unsigned char *code = (const unsigned char *)context->uc_mcontext.gregs[REG_RIP];
    struct instruction found = {.start = code};
    enum emulation result = NOT_EMULATED;
    if (code[0] == 0x0F && code[1] == 0x01 && (code[2] == 0xEE || code[2] == 0xEF)) {
        found.length = 3;
        result = protection_keys(context, code[2] == 0xEF);
    } else if (code[0] == 0x0F && code[1] == 0x0B && (code[2] >> 3 & 7) == 4 && code[2] >> 6 != 3) {
        decode_operands(context, code + 2, 0, &found);
        result = save_compacted(context, found.address + found.stride);
    } else if (decode_vex(context, &found)) {
        switch (found.opcode) {
        case 0x49:
            result = configuration_group(&found);
            break;
        case 0x4B:
            result = move(&found);
            break;
        case 0x5E:
            result = multiply(&found);
            break;
        }
    }
    if (result == EMULATED)
        context->uc_mcontext.gregs[REG_RIP] += (greg_t)found.length;
    return result;
}
