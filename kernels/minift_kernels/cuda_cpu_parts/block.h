// A block: its threads, the order in which they run, and how they wait for each other.
//
// One fiber, the scheduler, is the launching program's own stack. It picks a thread and switches to it; the
// thread runs until it must wait (barrier, warp collective, an atomic that found nothing to do) or ends, and
// switches back.
#pragma once

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <string>
#include <utility>
#include <vector>

#include "fibers.h"
#include "machine.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_cpu {

enum class State { ready, spinning, at_barrier, at_collective, finished };
enum class Order { ascending, descending, random };

/// What a thread waits for, and what it brings with it.
struct Wait {
    const char* operation = "";             // as the kernel writes it: "__syncthreads"
    Site site{"", 0};
    unsigned int mask = 0;                  // warp collectives: the lanes that take part
    void* request = nullptr;                // and this lane's operands, where its result goes too
    void (*work)(void* const* requests) = nullptr;
    bool vote = false;                      // __syncthreads_count and its like
};

/// A cp.async that has been issued and has not landed (copies.h).
struct PendingCopy {
    void* destination;
    const void* source;
    int copied_bytes, total_bytes, group;
};

struct Thread {
    Fiber fiber;
    uint3 index{};                          // threadIdx
    int number = 0;                         // threadIdx.x + threadIdx.y * blockDim.x + ...
    State state = State::finished;
    Wait wait;
    std::vector<PendingCopy> copies;
    int copy_group = 0;                     // the number of groups closed so far

    int lane() const { return number % 32; }
};

struct Warp {
    unsigned int lanes = 0;                 // bit i: lane i exists
    unsigned int finished = 0;
    unsigned int waiting = 0;               // at a collective
    int ready = 0;                          // number of threads that can run
};

constexpr int most_threads = 1024;

int lane;
char* dynamic_shared;
void** arguments;

static Thread threads[most_threads];
static Warp warps[most_threads / 32];
static int thread_count, finished_count, spinning_count;
static Thread* current;                     // the thread that runs; null while the scheduler does
static Fiber scheduler;
static Order order;
static uint64_t random_state;
static int barrier_votes;                   // result of the barrier that opened last
static int idle_rounds;                     // rounds in which threads span and changed nothing
static std::string failure;                 // why the launch was given up; empty while all is well
static const char* kernel_name;
static void (*kernel_call)();               // calls the kernel with the launch's arguments

inline Warp& warp_of(const Thread& thread) { return warps[thread.number / 32]; }

/// xorshift64* (Vigna 2016): short, and the same everywhere.
inline uint64_t next_random() {
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545F4914F6CDD1D;
}
inline int random_below(int bound) { return static_cast<int>((next_random() >> 33) % bound); }
bool by_chance(int one_in) { return order == Order::random && random_below(one_in) == 0; }

// -- words for reports --------------------------------------------------------------------------------------

inline std::string format_text(const char* format, va_list arguments) {
    char line[1024];
    vsnprintf(line, sizeof line, format, arguments);
    return line;
}
inline std::string text(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::string formatted = format_text(format, arguments);
    va_end(arguments);
    return formatted;
}
inline std::string text(uint3 index) { return text("(%u, %u, %u)", index.x, index.y, index.z); }
inline std::string text(Site site) {
    const char* slash = strrchr(site.file, '/');
    return text("%s:%d", slash ? slash + 1 : site.file, site.line);
}

inline std::string place_of_execution() {
    std::string place = text("kernel %s, block ", kernel_name) + text(blockIdx);
    return current ? place + ", thread " + text(current->index) : place;
}

/// The running thread's fiber is left for good, and the launch given up.
[[noreturn]] inline void give_up(const std::string& why) {
    failure = place_of_execution() + ": " + why;
    switch_fiber(current->fiber, scheduler);
    __builtin_unreachable();
}
void fail(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    give_up(format_text(format, arguments));
}
void fail_at(Site site, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    give_up(text(site) + ": " + format_text(format, arguments));
}

inline bool wait_alike(const Thread& a, const Thread& b) {
    if (a.state != b.state) return false;
    if (a.state != State::at_barrier && a.state != State::at_collective) return true;
    return a.wait.site.line == b.wait.site.line && a.wait.mask == b.wait.mask &&
           strcmp(a.wait.site.file, b.wait.site.file) == 0 && strcmp(a.wait.operation, b.wait.operation) == 0;
}

inline std::string what_it_does(const Thread& thread) {
    switch (thread.state) {
        case State::finished: return "returned from the kernel";
        case State::spinning: return text("spin on an atomic at ") + text(thread.wait.site);
        case State::at_barrier:
            return text("wait at %s() in ", thread.wait.operation) + text(thread.wait.site);
        case State::at_collective:
            return text("wait at %s(mask 0x%08x) in ", thread.wait.operation, thread.wait.mask) +
                   text(thread.wait.site);
        case State::ready: break;
    }
    return "can run";
}

/// "threads (0, 0, 0) to (31, 0, 0) wait at __syncthreads() in sum.cu:12; thread (32, 0, 0) returned ..."
inline std::string who_waits_where() {
    std::string report;
    bool told[most_threads] = {};
    for (int first = 0; first < thread_count; first++) {
        if (told[first]) continue;
        report += report.empty() ? "" : "; ";
        int ranges = 0;
        for (int begin = first; begin < thread_count; begin++) {
            if (told[begin] || !wait_alike(threads[first], threads[begin])) continue;
            int end = begin;
            while (end + 1 < thread_count && wait_alike(threads[first], threads[end + 1])) end++;
            for (int i = begin; i <= end; i++) told[i] = true;
            if (ranges++ == 4) report += " and more";
            if (ranges > 4) continue;
            report += ranges == 1 ? (begin == end ? "thread " : "threads ") : ", ";
            report += text(threads[begin].index);
            if (end > begin) report += " to " + text(threads[end].index);
        }
        report += " " + what_it_does(threads[first]);
    }
    return report;
}

// -- waiting and waking -------------------------------------------------------------------------------------

inline void set_state(Thread& thread, State state) {
    warp_of(thread).ready += (state == State::ready) - (thread.state == State::ready);
    spinning_count += (state == State::spinning) - (thread.state == State::spinning);
    thread.state = state;
}

/// The running thread waits; returns once something has made it ready again and its turn has come.
inline void wait_as(State state) {
    set_state(*current, state);
    switch_fiber(current->fiber, scheduler);
}

void spin(Site site) {
    current->wait.site = site;
    wait_as(State::spinning);
}
void memory_changed() { idle_rounds = 0; }

int barrier(const char* operation, bool vote, Site site) {
    current->wait = {operation, site};
    current->wait.vote = vote;
    wait_as(State::at_barrier);
    return barrier_votes;
}

/// If all lanes that `thread` waits for have come to the same operation, its work is done and they may go on.
inline void try_to_meet(Thread& thread) {
    Warp& warp = warp_of(thread);
    const Wait& wait = thread.wait;
    unsigned int expected = wait.mask & warp.lanes & ~warp.finished;
    if ((warp.waiting & expected) != expected) return;

    Thread* lanes = &thread - thread.lane();
    void* requests[32] = {};                // null for a lane that does not take part
    for (int i = 0; i < 32; i++) {
        if (!(expected >> i & 1)) continue;
        const Wait& other = lanes[i].wait;
        if (other.mask != wait.mask || other.work != wait.work ||
            strcmp(other.operation, wait.operation) != 0)
            return;
        requests[i] = other.request;
    }
    wait.work(requests);
    warp.waiting &= ~expected;
    for (int i = 0; i < 32; i++)
        if (expected >> i & 1) set_state(lanes[i], State::ready);
}

/// A thread that has returned is waited for no longer.
inline void leave_collectives(Thread& thread) {
    Warp& warp = warp_of(thread);
    warp.finished |= 1u << thread.lane();
    Thread* lanes = &thread - thread.lane();
    for (int i = 0; i < 32; i++)
        if (warp.waiting >> i & 1) try_to_meet(lanes[i]);
}

void meet(const char* operation, unsigned int mask, void* request, void (*work)(void* const* requests),
          Site site) {
    unsigned int own_bit = 1u << current->lane();
    if (!(mask & own_bit))
        fail_at(site, "%s(mask 0x%08x) is called by lane %d, which the mask leaves out", operation, mask,
                lane);
    current->wait = {operation, site, mask, request, work};
    warp_of(*current).waiting |= own_bit;
    set_state(*current, State::at_collective);
    try_to_meet(*current);
    // The others may have been let go, so this one waits for its next turn too: no lane is favoured.
    switch_fiber(current->fiber, scheduler);
}

unsigned int living_lanes() { return warp_of(*current).lanes & ~warp_of(*current).finished; }

/// What every fiber runs: one CUDA thread after the other, of as many blocks as there are.
static void thread_main() {
    arrived_from(scheduler);
    for (;;) {
        kernel_call();
        finished_count++;
        set_state(*current, State::finished);
        leave_collectives(*current);
        switch_fiber(current->fiber, scheduler);
    }
}

// -- the scheduler ------------------------------------------------------------------------------------------

/// The warp whose turn it is: the first or last that can run, or any; -1 where none can.
inline int choose_warp() {
    int candidates[most_threads / 32], count = 0;
    for (int warp = 0; warp * 32 < thread_count; warp++)
        if (warps[warp].ready) candidates[count++] = warp;
    if (count == 0) return -1;
    switch (order) {
        case Order::ascending: return candidates[0];
        case Order::descending: return candidates[count - 1];
        case Order::random: break;
    }
    return candidates[random_below(count)];
}

/// Each lane of the warp that can run does so once, until it waits or ends.
inline void run_lanes(int warp) {
    int lanes[32];
    for (int i = 0; i < 32; i++) lanes[i] = order == Order::descending ? 31 - i : i;
    if (order == Order::random)
        for (int i = 31; i > 0; i--) std::swap(lanes[i], lanes[random_below(i + 1)]);
    for (int lane : lanes) {
        int number = warp * 32 + lane;
        if (number >= thread_count || threads[number].state != State::ready) continue;
        current = &threads[number];
        threadIdx = current->index;
        cuda_cpu::lane = lane;
        switch_fiber(scheduler, current->fiber);
        if (!failure.empty()) return;
        current = nullptr;
    }
}

/// No thread can run. If all stand at the same barrier it opens; if some spin they may try again; else they
/// wait in vain, and the launch fails with who waits where.
inline void open_barrier_or_fail() {
    constexpr int most_idle_rounds = 100000;
    if (spinning_count && idle_rounds++ < most_idle_rounds) {
        for (int i = 0; i < thread_count; i++)
            if (threads[i].state == State::spinning) set_state(threads[i], State::ready);
        return;
    }
    bool together = true, any_at_barrier = false;
    for (int i = 0; i < thread_count; i++) {
        any_at_barrier |= threads[i].state == State::at_barrier;
        together &= wait_alike(threads[0], threads[i]);
    }
    if (!together || !any_at_barrier) {
        const char* kind = spinning_count ? "threads spin for ever: "
                           : any_at_barrier ? "divergent barrier: "
                                            : "deadlock in a warp: ";
        failure = place_of_execution() + ": " + kind + who_waits_where();
        return;
    }
    idle_rounds = 0;
    barrier_votes = 0;
    for (int i = 0; i < thread_count; i++) barrier_votes += threads[i].wait.vote;
    for (int i = 0; i < thread_count; i++) set_state(threads[i], State::ready);
}

/// Runs all threads of the block `blockIdx` to their end, or until one fails.
inline void run_block() {
    finished_count = spinning_count = idle_rounds = 0;
    for (Warp& warp : warps) warp = Warp{};
    for (int i = 0; i < thread_count; i++) {
        unsigned int number = i;
        threads[i].number = i;
        threads[i].index = {number % blockDim.x, number / blockDim.x % blockDim.y,
                            number / blockDim.x / blockDim.y};
        threads[i].copies.clear();
        threads[i].copy_group = 0;
        threads[i].state = State::finished;
        warp_of(threads[i]).lanes |= 1u << threads[i].lane();
        set_state(threads[i], State::ready);
    }
    while (failure.empty() && finished_count < thread_count) {
        int warp = choose_warp();
        if (warp >= 0) run_lanes(warp);
        else open_barrier_or_fail();
    }
}

}  // namespace cuda_cpu
