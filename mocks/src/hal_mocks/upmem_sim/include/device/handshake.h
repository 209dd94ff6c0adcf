/* A rendezvous of two tasklets: whoever comes first waits for the other. */
#ifndef HAL_UPMEM_HANDSHAKE_H
#define HAL_UPMEM_HANDSHAKE_H

#include <sysdef.h>

void handshake_notify(void);

/* 0, or EALREADY when another tasklet waits for this notifier already. */
int handshake_wait_for(sysname_t notifier);

#endif
