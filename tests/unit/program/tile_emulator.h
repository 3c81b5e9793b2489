/* Tiles and PKRU in software, for processors that have none: what their instructions do, on memory of our own. */
#ifndef TILE_EMULATOR_H
#define TILE_EMULATOR_H

#include <stddef.h>
#include <stdint.h>
#include <ucontext.h>

enum { TILE_SIZE = 1024, TILE_ROW = 64, TILE_ROWS = 16, TILES = 8 };

struct tile_state {
    uint32_t pkru;
    int in_use; /* the tiles: XINUSE[18] */
    unsigned char configuration[TILE_ROW];
    unsigned char tiles[TILES][TILE_ROWS][TILE_ROW];
};

extern struct tile_state emulated;

enum emulation {
    NOT_EMULATED, /* another instruction: the fault is the program's */
    EMULATED,     /* done, and rip is behind it */
    RAISES_UD,
    RAISES_GP,
};

/* Carry out the instruction at rip, which the processor refused with #UD. */
enum emulation emulate(ucontext_t *context);

/* Where the processor would not refuse an XSAVEC of tiles that it does not have, put UD2 in its place. */
void intercept_xsavec(unsigned char *code, size_t size);

#endif
