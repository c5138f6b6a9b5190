/* Private to the CUDA backend: instructions that only sm_90a has (PTX ISA, sections "mbarrier",
 * "cp.async.bulk.tensor", "wgmma", "setmaxnreg", "fence.proxy"), and the tensor maps that its copies need. For files
 * that are compiled for sm_90a alone: the MO_HOPPER_SOURCES of cmake/cuda.cmake. Shared memory is addressed by
 * 32-bit addresses from shared_address. */
#ifndef MO_BACKEND_CUDA_HOPPER_CUH
#define MO_BACKEND_CUDA_HOPPER_CUH

#include <cuda.h>

#include "backend/cuda/attention_mma.cuh"
#include "backend/cuda/cuda.cuh"

/* The map of a bf16 tensor of `dims` dimensions, the contiguous one first, for copies of boxes that land in shared
 * memory swizzled by 128 bytes (so box[0] <= 64); what a box has outside of the tensor becomes zeros. strides: bytes
 * from one to the next of dimension 1 and on. `fetch`: what L2 reads at once. */
MO_CHECKED mo_status mo_cuda_tensor_map(CUtensorMap *map, const void *data, int dims, const uint64_t *sizes,
                                        const uint64_t *strides, const uint32_t *box, CUtensorMapL2promotion fetch);

namespace hopper {

/* --- mbarriers: a phase ends when all arrivals came and all expected bytes have landed --- */

__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
/* Between barrier_init and the first use by copies and other threads, beside a barrier of the block or cluster. */
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/* Arrive, and expect `bytes` from copies before the phase ends. */
__device__ __forceinline__ void barrier_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
/* Arrive at the barrier at the same place of another block of the cluster. Without .release.cluster on purpose: with
 * it ptxas puts MEMBAR.GPU before every arrival, which took 40 % of the grouped products' speed. What the arrival
 * says, that wgmma is done with a stage, needs no fence: products_wait came before. */
__device__ __forceinline__ void barrier_arrive_at(uint32_t barrier, uint32_t block) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
      "}" ::"r"(barrier),
      "r"(block)
      : "memory");
}
/* Arrive when all cp.async of this thread so far are done; the arrival counts as one of the barrier's. */
__device__ __forceinline__ void barrier_arrive_after_copies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

/* Wait for the end of the phase of this parity: 0, 1, 0, ...; that of parity 1 before the first counts as over. */
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

/* --- copies to shared memory --- */

/* 16 bytes; bytes = 0 writes zeros. L2 reads 256: unlike those of copy_async, these are pieces of rows of several
 * KB, the rest of which is asked for next. */
__device__ __forceinline__ void copy_16(uint32_t to, const void *from, uint32_t bytes) {
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
/* A box of a tensor of two dimensions, its corner at (x, y), counted at `barrier`. */
__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap *map, uint32_t barrier, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          to),
      "l"(map), "r"(barrier), "r"(x), "r"(y)
      : "memory");
}
/* The same of four dimensions. */
__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap *map, uint32_t barrier, int x, int y, int z,
                                         int w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
}
/* A box of a tensor of two dimensions to the blocks of the cluster in `mask`. */
__device__ __forceinline__ void copy_box_to_all(uint32_t to, const CUtensorMap *map, uint32_t barrier, int x, int y,
                                                uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
      " [%0], [%1, {%4, %5}], [%2], %3;" ::"r"(to),
      "l"(map), "r"(barrier), "h"(mask), "r"(x), "r"(y)
      : "memory");
}
__device__ __forceinline__ void prefetch_map(const CUtensorMap *map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
/* Before the first use of a map that an earlier kernel wrote to global memory. */
__device__ __forceinline__ void map_acquire(const CUtensorMap *map) {
  asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(map) : "memory");
}
/* Writes of other threads to shared memory, seen through a barrier, become visible to wgmma. */
__device__ __forceinline__ void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/* --- clusters, and registers of a warp group, moved from one that needs few to one that needs many --- */

__device__ __forceinline__ uint32_t cluster_block() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
template <int N>
__device__ __forceinline__ void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
__device__ __forceinline__ void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

/* --- wgmma: asynchronous products of a warp group, bf16 in, float32 out --- */

/* Before the first product that follows writes of its registers. */
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
/* End of a group of products. */
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/* Until at most the last N groups are under way. */
template <int N>
__device__ __forceinline__ void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

/* The compiler moves no use of these registers across this place: it doesn't know that products are asynchronous. */
template <int N>
__device__ __forceinline__ void pin(float (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(x[i])::"memory");
}
template <int N>
__device__ __forceinline__ void pin(uint32_t (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+r"(x[i])::"memory");
}

/* Descriptor of a matrix in shared memory with rows of 64 bf16, as swizzled copies leave it; groups of 8 rows follow
 * each other. leading: bytes to the next 64 columns, where rows are the summed dimension; unused where columns are. */
__device__ __forceinline__ uint64_t operand(uint32_t shared, int leading = 16) {
  return (uint64_t)1 << 62 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)(leading >> 4) << 16 | (shared >> 4 & 0x3fff);
}
/* What to add to a descriptor to go on by this many bytes: 32 within a row, or 8 rows. */
__device__ __forceinline__ constexpr uint64_t operand_step(int bytes) { return (uint64_t)(bytes >> 4); }

/* c [64, N] = a [64, 16] b [N, 16]^T + (keep ? c : 0), a and b in shared memory. Thread t of the warp group holds in
 * c[4j + 2i + k] row t/32*16 + t%32/4 + 8i, column 8j + t%4*2 + k. */
template <int N>
__device__ void product_shared(float (&c)[N / 2], uint64_t a, uint64_t b, bool keep);
/* c [64, N] = a [64, 16] b [16, N] + (keep ? c : 0), a in registers as for mma.m16n8k16, b in shared memory. */
template <int N>
__device__ void product_registers(float (&c)[N / 2], const uint32_t *a, uint64_t b, bool keep);

/* Operands of asm: MO_Cn: n registers of c; MO_On: their places. */
#define MO_8(i)                                                                                               \
  "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), "+f"(c[i + 6]), \
      "+f"(c[i + 7])
#define MO_32(i) MO_8(i), MO_8(i + 8), MO_8(i + 16), MO_8(i + 24)
#define MO_C32 MO_32(0)
#define MO_C40 MO_C32, MO_8(32)
#define MO_C64 MO_C32, MO_32(32)
#define MO_C128 MO_C64, MO_32(64), MO_32(96)
#define MO_O32                                                                                         \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21" \
  ", %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define MO_O40 MO_O32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define MO_O64                                                                                                  \
  MO_O40                                                                                                        \
  ", %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, " \
  "%61, %62, %63"
#define MO_O128                                                                                              \
  MO_O64                                                                                                     \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, "   \
  "%84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, " \
  "%104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, "   \
  "%121, %122, %123, %124, %125, %126, %127"

/* H = N / 2 registers of c; P0 .. P5: the places of the operands after c. */
#define MO_PRODUCT_SHARED(N, H, P0, P1, P2)                                                                 \
  template <>                                                                                               \
  __device__ __forceinline__ void product_shared<N>(float(&c)[H], uint64_t a, uint64_t b, bool keep) {      \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P2                                                     \
                 ", 0;\n"                                                                                   \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" MO_O##H "}, " P0 ", " P1      \
                                                                                      ", p, 1, 1, 0, 0;\n}" \
                 : MO_C##H                                                                                  \
                 : "l"(a), "l"(b), "r"((int)keep));                                                         \
  }
#define MO_PRODUCT_REGISTERS(N, H, P0, P1, P2, P3, P4, P5)                                                       \
  template <>                                                                                                    \
  __device__ __forceinline__ void product_registers<N>(float(&c)[H], const uint32_t *a, uint64_t b, bool keep) { \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P5                                                          \
                 ", 0;\n"                                                                                        \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" MO_O##H                            \
                 "}, {" P0 ", " P1 ", " P2 ", " P3 "}, " P4 ", p, 1, 1, 1;\n}"                                   \
                 : MO_C##H                                                                                       \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)keep));                          \
  }
MO_PRODUCT_SHARED(80, 40, "%40", "%41", "%42")
MO_PRODUCT_SHARED(128, 64, "%64", "%65", "%66")
MO_PRODUCT_SHARED(256, 128, "%128", "%129", "%130")
MO_PRODUCT_REGISTERS(64, 32, "%32", "%33", "%34", "%35", "%36", "%37")
MO_PRODUCT_REGISTERS(128, 64, "%64", "%65", "%66", "%67", "%68", "%69")
MO_PRODUCT_REGISTERS(256, 128, "%128", "%129", "%130", "%131", "%132", "%133")
#undef MO_PRODUCT_SHARED
#undef MO_PRODUCT_REGISTERS

}  // namespace hopper

#endif
