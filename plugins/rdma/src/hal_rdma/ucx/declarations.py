"""The part of UCP's C interface that is used, as cffi reads it.

Source: ``ucp/api/ucp.h``, ``ucp/api/ucp_def.h`` and ``ucs/type/status.h`` of UCX. Structures have a mask that says
which of their fields are set, so a later version may add fields at their end; what is below is the same from 1.13 on.
Addresses of the user's buffers are declared as numbers: see :func:`hal_rdma.ucx.library.Library.address_of`.
"""

from __future__ import annotations

UCP = """
typedef struct context_s* ucp_context_h;
typedef struct worker_s* ucp_worker_h;
typedef struct ep_s* ucp_ep_h;
typedef struct mem_s* ucp_mem_h;
typedef struct rkey_s* ucp_rkey_h;
typedef struct config_s* ucp_config_h;
typedef struct message_s* ucp_tag_message_h;

typedef struct { uint64_t field_mask; uint64_t features; size_t request_size; void* request_init;
  void* request_cleanup; uint64_t tag_sender_mask; int mt_workers_shared; size_t estimated_num_eps;
  size_t estimated_num_ppn; const char* name; uint64_t reserved[8]; } ucp_params_t;
typedef struct { uint64_t field_mask; int thread_mode; unsigned long cpu_mask[16]; unsigned events; void* user_data;
  int event_fd; uint64_t flags; const char* name; uint64_t reserved[8]; } ucp_worker_params_t;
typedef struct { const void* addr; uint32_t addrlen; } ucs_sock_addr_t;
typedef void (*ucp_err_handler_cb_t)(void*, ucp_ep_h, int8_t);
typedef struct { ucp_err_handler_cb_t cb; void* arg; } ucp_err_handler_t;
typedef struct { uint64_t field_mask; const void* address; int err_mode; ucp_err_handler_t err_handler;
  void* user_data; unsigned flags; ucs_sock_addr_t sockaddr; void* conn_request; const char* name;
  ucs_sock_addr_t local_sockaddr; uint64_t reserved[8]; } ucp_ep_params_t;
typedef struct { uint64_t field_mask; void* address; size_t length; unsigned flags; unsigned prot; int memory_type;
  uint64_t reserved[8]; } ucp_mem_map_params_t;
typedef struct { uint64_t field_mask; void* address; size_t length; int mem_type; uint64_t reserved[8]; }
  ucp_mem_attr_t;
typedef struct { uint64_t sender_tag; size_t length; } ucp_tag_recv_info_t;
typedef struct { uint32_t op_attr_mask; uint32_t flags; void* request; void* cb; uint64_t datatype; void* user_data;
  void* reply_buffer; int memory_type; void* recv_info; ucp_mem_h memh; uint64_t reserved[8]; } ucp_request_param_t;

int8_t ucp_config_read(const char*, const char*, ucp_config_h*);
int8_t ucp_config_modify(ucp_config_h, const char*, const char*);
void ucp_config_release(ucp_config_h);
void ucp_get_version(unsigned*, unsigned*, unsigned*);
const char* ucp_get_version_string(void);
int8_t ucp_init_version(unsigned, unsigned, const ucp_params_t*, ucp_config_h, ucp_context_h*);
void ucp_cleanup(ucp_context_h);

int8_t ucp_worker_create(ucp_context_h, const ucp_worker_params_t*, ucp_worker_h*);
void ucp_worker_destroy(ucp_worker_h);
int8_t ucp_worker_get_address(ucp_worker_h, void**, size_t*);
void ucp_worker_release_address(ucp_worker_h, void*);
int8_t ucp_worker_get_efd(ucp_worker_h, int*);
int8_t ucp_worker_arm(ucp_worker_h);
unsigned ucp_worker_progress(ucp_worker_h);
int8_t ucp_worker_fence(ucp_worker_h);

int8_t ucp_ep_create(ucp_worker_h, const ucp_ep_params_t*, ucp_ep_h*);
intptr_t ucp_ep_close_nbx(ucp_ep_h, const ucp_request_param_t*);
intptr_t ucp_ep_flush_nbx(ucp_ep_h, const ucp_request_param_t*);

int8_t ucp_mem_map(ucp_context_h, const ucp_mem_map_params_t*, ucp_mem_h*);
int8_t ucp_mem_unmap(ucp_context_h, ucp_mem_h);
int8_t ucp_mem_query(ucp_mem_h, ucp_mem_attr_t*);
int8_t ucp_rkey_pack(ucp_context_h, ucp_mem_h, void**, size_t*);
void ucp_rkey_buffer_release(void*);
int8_t ucp_ep_rkey_unpack(ucp_ep_h, const void*, ucp_rkey_h*);
int8_t ucp_rkey_ptr(ucp_rkey_h, uint64_t, void**);
void ucp_rkey_destroy(ucp_rkey_h);

intptr_t ucp_put_nbx(ucp_ep_h, uintptr_t, size_t, uint64_t, ucp_rkey_h, const ucp_request_param_t*);
intptr_t ucp_get_nbx(ucp_ep_h, uintptr_t, size_t, uint64_t, ucp_rkey_h, const ucp_request_param_t*);
intptr_t ucp_atomic_op_nbx(ucp_ep_h, int, const void*, size_t, uint64_t, ucp_rkey_h, const ucp_request_param_t*);
intptr_t ucp_tag_send_nbx(ucp_ep_h, uintptr_t, size_t, uint64_t, const ucp_request_param_t*);
intptr_t ucp_tag_recv_nbx(ucp_worker_h, uintptr_t, size_t, uint64_t, uint64_t, const ucp_request_param_t*);
ucp_tag_message_h ucp_tag_probe_nb(ucp_worker_h, uint64_t, uint64_t, int, ucp_tag_recv_info_t*);
intptr_t ucp_tag_msg_recv_nbx(ucp_worker_h, void*, size_t, ucp_tag_message_h, const ucp_request_param_t*);
int8_t ucp_request_check_status(intptr_t);
int8_t ucp_tag_recv_request_test(intptr_t, ucp_tag_recv_info_t*);
void ucp_request_cancel(ucp_worker_h, intptr_t);
void ucp_request_free(intptr_t);
"""

UCS = "const char* ucs_status_string(int8_t);"

ATOMIC = """
uint64_t __atomic_fetch_add_8(uintptr_t, uint64_t, int);
bool __atomic_compare_exchange_8(uintptr_t, uint64_t*, uint64_t, int, int);
void atomic_thread_fence(int);
"""
"""GCC's libatomic, whose interface is that of the ``__atomic`` builtins; the last number is the memory order."""

SEQ_CST = 5

FEATURE_TAG, FEATURE_RMA, FEATURE_AMO64, FEATURE_WAKEUP = 1, 2, 8, 16

PARAM_FEATURES, PARAM_MT_WORKERS_SHARED = 1 << 0, 1 << 5
WORKER_THREAD_MODE, SERIALIZED = 1 << 0, 1
EP_REMOTE_ADDRESS, EP_ERR_MODE, EP_ERR_HANDLER = 1 << 0, 1 << 1, 1 << 2
ERR_MODE_NONE, ERR_MODE_PEER = 0, 1
MAP_ADDRESS, MAP_LENGTH, MAP_FLAGS, MAP_ALLOCATE = 1, 2, 4, 1 << 1
MEM_ADDRESS, MEM_LENGTH = 1, 2

OP_FLAGS, OP_DATATYPE, OP_REPLY_BUFFER, OP_RECV_INFO = 1 << 4, 1 << 3, 1 << 5, 1 << 7
OP_NEVER_AT_ONCE = 1 << 16
EP_CLOSE_FORCE = 1
WORD_DATATYPE = 8 << 3
"""Contiguous elements of 8 bytes."""
ATOMIC_ADD, ATOMIC_SWAP, ATOMIC_COMPARE_SWAP = 0, 1, 2
"""``ucp_atomic_op_t``."""

OK, INPROGRESS = 0, 1
IO_ERROR, NO_MEMORY, INVALID_ADDR, UNREACHABLE = -3, -4, -7, -6
BUSY, CANCELED, OUT_OF_RANGE, EXCEEDS_LIMIT, UNSUPPORTED = -15, -16, -19, -21, -22
CONNECTION_RESET, ENDPOINT_TIMEOUT = -25, -80
"""``ucs_status_t``."""
