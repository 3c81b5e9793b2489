/* The table behind the capsule fpstate_c_api; its contract is in programs/include/fpstate.h. */
#ifndef FPSTATE_C_API_H
#define FPSTATE_C_API_H

#include "fpstate.h"

const struct fpstate_api *c_api(void);

#endif
