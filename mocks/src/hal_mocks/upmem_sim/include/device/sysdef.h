#ifndef HAL_UPMEM_SYSDEF_H
#define HAL_UPMEM_SYSDEF_H

typedef unsigned int thread_id_t;
typedef unsigned int sysname_t;

#endif
