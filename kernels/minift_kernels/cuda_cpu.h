// Runs a CUDA C kernel on the CPU, so that it can be tested, sanitized and stepped through without a GPU.
//
//     g++ -x c++ -std=c++17 -O2 -g -fPIC -shared -include cuda_cpu.h kernel.cu ...    (cuda_cpu.py does this)
//
// To g++ a .cu file is C++ with some unknown words. This header gives each word a meaning:
//
//   a CUDA thread    is a fiber: its own call stack, switched by hand                  (fibers.h)
//   a block          is its fibers, of which one runs at a time, until it must wait    (block.h)
//   __syncthreads()  is "wait until all of the block are here": the next fiber runs    (barrier.h)
//   a warp           is 32 threads that can meet: the last to arrive does the work     (warp.h)
//                    of a shuffle, a vote or a tensor-core product for all            (mma.h, device_model.h)
//   an atomic        is a plain operation, since no two fibers run at once             (atomics.h)
//   __shared__       is static: the fibers of a block see it, and blocks run in turn
//   a grid           is a loop over its blocks                                         (launch.h)
//
// The files are in cuda_cpu_parts/; machine.h is the line between the words, which every kernel includes, and
// the machine behind them, which is compiled once (runtime.cpp).
//
// Nothing of this shows the speed of a GPU. What it does show is whether a kernel is right:
//
// - The order in which threads, warps and blocks run is chosen at launch: ascending, descending or random
//   from a seed. A thread runs until it must wait, so a kernel that lacks a barrier reads what has not been
//   written yet, or what has been overwritten already, and gives a wrong result under one of these orders.
// - Threads that wait for each other at different places are reported, each with its place.
// - An access outside an array is reported with kernel, block and thread; guards.h says what escapes.
// - Shared memory begins as NaN in each block, so a value that nobody wrote shows.
//
// What differs from a GPU:
//
// - expf and its like are the C library's, right to the last bit or nearly so; so are __expf and its like.
// - Memory is in order: a fence does nothing, and a kernel that lacks one is not found out. Lanes that meet
//   in a shuffle or a matrix load have waited for each other, so a __syncwarp missing right before it is not
//   either.
// - A thread that waits for another by reading a plain variable in a loop hangs (an interrupt ends it); by
//   atomics it does not. Blocks run one after the other, so one that waits for a later one waits in vain.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define CUDA_CPU 1

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static  // one array for all threads of the block; the linker gathers them (shared.ld)

#include "machine.h"
#include "barrier.h"
#include "warp.h"
#include "atomics.h"
#include "intrinsics.h"
#include "kernel_table.h"
