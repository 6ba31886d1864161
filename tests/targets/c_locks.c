/* A thread that waits for a lock of the C library, whichever it is. The argument names the case.
 *
 * Says "PID WAITER [HOLDER]" (thread ids; HOLDER: who holds it, in this process or in another one) on the fd in READY_FD.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct shared {
	pthread_mutex_t mutex, other;
	pthread_rwlock_t rwlock;
	pthread_barrier_t barrier, meeting;
	pthread_cond_t condition;
	sem_t semaphore;
	volatile int holder, second;
};

static struct shared *shared;
static pthread_t first;
static volatile int waiter;

static int tid(void)
{
	return (int)syscall(SYS_gettid);
}

static void *sleeps(void *unused)
{
	for (;;)
		pause();
	return unused;
}

static void mutex(pthread_mutex_t *made, int type, int pshared, int robust, int protocol)
{
	pthread_mutexattr_t attributes;

	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_settype(&attributes, type);
	pthread_mutexattr_setpshared(&attributes, pshared);
	pthread_mutexattr_setrobust(&attributes, robust);
	pthread_mutexattr_setprotocol(&attributes, protocol);
	pthread_mutex_init(made, &attributes);
}

static void *holds(void *unused)
{
	pthread_mutex_lock(&shared->mutex);
	shared->holder = tid();
	return sleeps(unused);
}

static void *locks(void *unused)
{
	waiter = tid();
	pthread_mutex_lock(&shared->mutex);
	return unused;
}

static void *relocks(void *unused)
{
	pthread_mutex_lock(&shared->mutex);
	shared->holder = tid();
	return locks(unused);
}

static void *crosses(void *unused)
{
	pthread_mutex_lock(&shared->other);
	pthread_barrier_wait(&shared->meeting);
	return locks(unused);
}

static void *crosses_back(void *unused)
{
	pthread_mutex_lock(&shared->mutex);
	shared->holder = tid();
	pthread_barrier_wait(&shared->meeting);
	pthread_mutex_lock(&shared->other);
	return unused;
}

static void *writes(void *unused)
{
	pthread_rwlock_wrlock(&shared->rwlock);
	shared->holder = tid();
	return sleeps(unused);
}

static void *reads(void *unused)
{
	pthread_rwlock_rdlock(&shared->rwlock);
	shared->second = tid();
	return sleeps(unused);
}

static void *wants_to_read(void *unused)
{
	waiter = tid();
	pthread_rwlock_rdlock(&shared->rwlock);
	return unused;
}

static void *wants_to_write(void *unused)
{
	waiter = tid();
	pthread_rwlock_wrlock(&shared->rwlock);
	return unused;
}

static void *meets(void *unused)
{
	waiter = tid();
	pthread_barrier_wait(&shared->barrier);
	return unused;
}

static void *waits(void *unused)
{
	waiter = tid();
	pthread_mutex_lock(&shared->mutex);
	pthread_cond_wait(&shared->condition, &shared->mutex);
	return unused;
}

static void *takes(void *unused)
{
	waiter = tid();
	sem_wait(&shared->semaphore);
	return unused;
}

static void *joins(void *unused)
{
	waiter = tid();
	pthread_join(first, NULL);
	return unused;
}

static pthread_t start(void *(*body)(void *))
{
	pthread_t made;

	pthread_create(&made, NULL, body, NULL);
	return made;
}

/* In a process of its own. */
static pid_t elsewhere(void *(*body)(void *))
{
	pid_t child = fork();

	if (child == 0) {
		body(NULL);
		_exit(0);
	}
	return child;
}

static void until(volatile int *word)
{
	while (!*word)
		usleep(1000);
}

int main(int count, char **arguments)
{
	const char *name = count > 1 ? arguments[1] : "";
	int pshared = strstr(name, "shared") ? PTHREAD_PROCESS_SHARED : PTHREAD_PROCESS_PRIVATE;
	int robust = strstr(name, "robust") ? PTHREAD_MUTEX_ROBUST : PTHREAD_MUTEX_STALLED;
	int protocol = strstr(name, "inherit") ? PTHREAD_PRIO_INHERIT : PTHREAD_PRIO_NONE;
	int type = strstr(name, "recursive")    ? PTHREAD_MUTEX_RECURSIVE
		   : strstr(name, "errorcheck") ? PTHREAD_MUTEX_ERRORCHECK
						: PTHREAD_MUTEX_NORMAL;
	pthread_rwlockattr_t rwlock;
	pthread_barrierattr_t barrier;
	pthread_condattr_t condition;
	char line[64];
	int fd = getenv("READY_FD") ? atoi(getenv("READY_FD")) : 1;

	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
		      MAP_ANONYMOUS | (pshared == PTHREAD_PROCESS_SHARED ? MAP_SHARED : MAP_PRIVATE), -1, 0);
	mutex(&shared->mutex, type, pshared, robust, protocol);
	mutex(&shared->other, type, pshared, robust, protocol);
	pthread_rwlockattr_init(&rwlock);
	pthread_rwlockattr_setpshared(&rwlock, pshared);
	pthread_rwlock_init(&shared->rwlock, &rwlock);
	pthread_barrierattr_init(&barrier);
	pthread_barrierattr_setpshared(&barrier, pshared);
	pthread_barrier_init(&shared->barrier, &barrier, 3);
	pthread_barrier_init(&shared->meeting, NULL, 2);
	pthread_condattr_init(&condition);
	pthread_condattr_setpshared(&condition, pshared);
	pthread_cond_init(&shared->condition, &condition);
	sem_init(&shared->semaphore, pshared == PTHREAD_PROCESS_SHARED, 0);

	if (!strncmp(name, "held", 4)) {
		/* held_..., and held_elsewhere_...: by another process. */
		if (strstr(name, "elsewhere"))
			elsewhere(holds);
		else
			start(holds);
		until(&shared->holder);
		if (strstr(name, "dead")) {
			kill(shared->holder, SIGKILL);
			waitpid(shared->holder, NULL, 0);
		}
		start(locks);
	} else if (!strncmp(name, "alone", 5)) {
		pthread_mutex_lock(&shared->mutex);
		waiter = tid();
	} else if (!strncmp(name, "relock", 6)) {
		start(relocks);
	} else if (!strncmp(name, "crossed", 7)) {
		start(crosses);
		start(crosses_back);
		until(&shared->holder);
	} else if (!strncmp(name, "written", 7)) {
		start(writes);
		until(&shared->holder);
		start(wants_to_read);
	} else if (!strncmp(name, "read", 4)) {
		start(reads);
		until(&shared->second);
		start(wants_to_write);
	} else if (!strncmp(name, "barrier", 7)) {
		start(meets);
	} else if (!strncmp(name, "condition", 9)) {
		start(waits);
	} else if (!strncmp(name, "semaphore", 9)) {
		start(takes);
	} else if (!strncmp(name, "join", 4)) {
		first = start(sleeps);
		start(joins);
	} else {
		return 2;
	}
	until(&waiter);
	snprintf(line, sizeof(line), "%d %d %d\n", getpid(), waiter, shared->holder);
	unsetenv("READY_FD");
	if (write(fd, line, strlen(line)) < 0)
		return 3;
	if (!strncmp(name, "alone", 5))
		pthread_mutex_lock(&shared->mutex);
	sleeps(NULL);
	return 0;
}
