/*
 * The shape of the psycopg2 hang without OpenSSL and libpq: a library with locks that its users lend it through a
 * callback (libcrypto before 1.1.0), one above it (libssl), and a client that sets the callback (libpq). The second use of
 * a lock finds it taken. Compiled in parts, under the names that a distribution, a wheel or somebody else gives to them.
 */
#include <pthread.h>
#include <stdlib.h>

typedef void (*locker)(int mode, int number);

#ifdef PART_CRYPTO
static locker callback;

void CRYPTO_set_locking_callback(locker chosen)
{
	callback = chosen;
}

int X509_STORE_get_by_subject(void)
{
	callback(1, 0);
	return 1;
}
#endif

#ifdef PART_SSL
int X509_STORE_get_by_subject(void);

int SSL_connect(void)
{
	return 1 + X509_STORE_get_by_subject();
}
#endif

#ifdef PART_CLIENT
void CRYPTO_set_locking_callback(locker chosen);
int SSL_connect(void);

static pthread_mutex_t locks[4];

static __attribute__((noinline)) void CALLBACK(int mode, int number)
{
#ifdef TAIL_CALL
	/* Compiled to a jump: the callback itself leaves no frame. */
	pthread_mutex_lock(&locks[number + !mode]);
#else
	if (mode ? pthread_mutex_lock(&locks[number]) : pthread_mutex_unlock(&locks[number]))
		abort();
#endif
}

int CONNECT(void)
{
	CRYPTO_set_locking_callback(CALLBACK);
	return 1 + SSL_connect() + SSL_connect();
}
#endif
