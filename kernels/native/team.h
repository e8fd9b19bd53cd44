// Threads that help, and never have to be waited for while they do nothing.
//
// A job is a list of phases, and a phase so many tasks. Whoever is there takes the next task; a phase
// begins when all tasks of the one before are done. A thread that the system has put aside holds
// nobody up unless it had just taken a task: the others do its share. With barriers, as OpenMP has
// them, a busy neighbour on one core stops all of them, some hundred times a step.
//
// Tasks of a phase write to places of their own, and what a task computes does not depend on who
// takes it: results have the same bits with any number of threads.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <pthread.h>
#include <sched.h>
#endif

namespace penstock {

static inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Job {
    struct Phase {
        int64_t count;
        std::function<void(int64_t)> act;
        alignas(64) std::atomic<int64_t> next{0};
        alignas(64) std::atomic<int64_t> done{0};
        Phase(int64_t count, std::function<void(int64_t)> act) : count(count), act(std::move(act)) {}
    };
    std::deque<Phase> phases;

public:
    const int64_t threads;
    explicit Job(int64_t threads) : threads(threads) {}

    // Adds act(0) ... act(count - 1); alone, does them at once. What `act` refers to must live until
    // `run` returns, and is not touched afterwards.
    template <class Act>
    void phase(int64_t count, Act act) {
        if (threads > 1) {
            if (count > 0) phases.emplace_back(count, act);
            return;
        }
        for (int64_t i = 0; i < count; ++i) act(i);
    }

    // A few times more pieces than threads, so that a late one costs little: for `phase`.
    int64_t pieces(int64_t count) const { return threads == 1 ? 1 : std::min(count, 4 * threads); }

    // Take part from wherever the job is. The owner stays until it is done; a helper leaves when
    // there has been nothing to do for a while.
    void work(bool owner) {
        const int64_t patience = 20'000;  // pauses, a millisecond or so
        for (Phase& phase : phases) {
            for (int64_t i; (i = phase.next.fetch_add(1, std::memory_order_relaxed)) < phase.count;) {
                phase.act(i);
                phase.done.fetch_add(1, std::memory_order_acq_rel);
            }
            int64_t waited = 0;
            while (phase.done.load(std::memory_order_acquire) < phase.count) {
                pause_briefly();
                if (++waited < patience) continue;
                if (!owner) return;
                sched_yield();  // somebody holds a task and needs a core
            }
        }
    }
};

class Team {
    std::mutex mutex;
    std::condition_variable wake;
    std::vector<std::thread> helpers;
    std::shared_ptr<Job> job;
    std::atomic<uint64_t> given{0};  // jobs so far
    int64_t asleep = 0;
    bool full = false;

    void help(int64_t number) {
        const auto patience = std::chrono::microseconds(200);  // waking takes as long as that
        uint64_t seen = 0;
        for (;;) {
            auto since = std::chrono::steady_clock::now();
            for (int64_t i = 0; given.load(std::memory_order_acquire) == seen; ++i) {
                pause_briefly();
                if (i % 64 == 0 && std::chrono::steady_clock::now() - since > patience) break;
            }
            std::shared_ptr<Job> taken;
            {
                std::unique_lock<std::mutex> lock(mutex);
                if (given.load(std::memory_order_relaxed) == seen) {
                    ++asleep;
                    wake.wait(lock, [&] { return given.load(std::memory_order_relaxed) != seen; });
                    --asleep;
                }
                seen = given.load(std::memory_order_relaxed);
                if (job && number < job->threads - 1) taken = job;
            }
            if (taken) taken->work(false);
        }
    }

    // More helpers, as far as the system allows: fewer do the same in more time.
    void hire(int64_t wanted) {
        while ((int64_t)helpers.size() < wanted && !full) {
            int64_t number = helpers.size();
            try {
                helpers.emplace_back([this, number] { help(number); });
            } catch (const std::system_error&) {
                full = true;
            }
        }
    }

    static Team*& current() {
        static Team* team = new Team;
        return team;
    }

public:
    // Do a job with the help of others. Several callers may at the same time: helpers go to the last.
    void run(const std::shared_ptr<Job>& mine) {
        if (mine->threads == 1) return;  // done when it was made
        bool sleeping;
        {
            std::lock_guard<std::mutex> lock(mutex);
            hire(mine->threads - 1);
            job = mine;
            given.fetch_add(1, std::memory_order_release);
            sleeping = asleep > 0;
        }
        if (sleeping) wake.notify_all();
        mine->work(true);
        std::lock_guard<std::mutex> lock(mutex);
        if (job == mine) job.reset();
    }

    // One for the process; it is never taken apart, since helpers may sleep in it. A child that was
    // forked has none of them, and whoever held the mutex is not there either: it begins anew.
    static Team& all() {
#if !defined(_WIN32)
        static const int watched = pthread_atfork(nullptr, nullptr, [] { current() = new Team; });
        (void)watched;
#endif
        return *current();
    }
};

// Makes a job by `fill(job)` and does it.
template <class Fill>
static void run(int64_t threads, Fill fill) {
    auto job = std::make_shared<Job>(threads < 1 ? 1 : threads);
    fill(*job);
    Team::all().run(job);
}

}  // namespace penstock
