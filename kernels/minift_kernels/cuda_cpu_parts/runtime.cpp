// What all kernels share, compiled once. Read in this order:
#include "machine.h"   // what a kernel may ask of it
#include "fibers.h"    // a stack for each thread
#include "block.h"     // the threads of a block, and the scheduler
#include "copies.h"    // cp.async
#include "guards.h"    // accesses outside an array
#include "launch.h"    // the grid, and the interface to Python
