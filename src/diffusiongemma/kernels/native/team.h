/* A few threads that do one piece of work together, and wait for each other between its parts. */

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

#define MOST 64 /* threads */

struct team {
    int64_t members; /* set before anyone begins */
    atomic_int arrived, round, begun;
    void (*task)(void *what, struct team *team, int64_t member);
    void *what;
};
struct member {
    struct team *team;
    int64_t number;
    pthread_t thread;
};

static inline void wait_for(atomic_int *value, int before) {
    for (int64_t looks = 0; atomic_load_explicit(value, memory_order_acquire) == before; looks++)
        if (looks > 4000) sched_yield(); /* a core short: let others have it */
}
/* Returns once all members have come here. */
static inline void together(struct team *team) {
    if (team->members == 1) return;
    int round = atomic_load(&team->round);
    if (atomic_fetch_add(&team->arrived, 1) + 1 == team->members) {
        atomic_store(&team->arrived, 0);
        atomic_store(&team->round, round + 1);
    } else {
        wait_for(&team->round, round);
    }
}
static void *member_runs(void *given) {
    struct member *me = given;
    wait_for(&me->team->begun, 0);
    me->team->task(me->team->what, me->team, me->number);
    return 0;
}
/* Runs the task with up to so many threads: with fewer where the system gives no more. */
static inline void run_team(struct team *team, int64_t threads) {
    struct member others[MOST];
    int64_t count = 0;
    while (count + 1 < threads && count < MOST) {
        others[count] = (struct member){team, count + 1, 0};
        if (pthread_create(&others[count].thread, 0, member_runs, others + count)) break;
        count++;
    }
    team->members = count + 1;
    atomic_store(&team->begun, 1);
    team->task(team->what, team, 0);
    for (int64_t i = 0; i < count; i++) pthread_join(others[i].thread, 0);
}
