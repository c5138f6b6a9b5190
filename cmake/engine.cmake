# The program moe-outliers: everything that needs MPI, HDF5, BLAS or CUDA.

# One folder per room; the CUDA sources are added by cmake/cuda.cmake when that backend is built.
set(MO_ROOMS weights backend backend/cpu backend/check pipeline analysis results)
list(TRANSFORM MO_ROOMS REPLACE "(.+)" "${PROJECT_SOURCE_DIR}/src/\\1/*.c" OUTPUT_VARIABLE mo_patterns)
file(GLOB mo_sources CONFIGURE_DEPENDS ${mo_patterns})
list(REMOVE_ITEM mo_sources ${mo_core_sources})
file(GLOB mo_cli_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/src/cli/*.c")

add_library(mo STATIC ${mo_sources} ${MO_CUDA_SOURCES})
target_include_directories(mo PRIVATE src)
target_link_libraries(mo PUBLIC mo_core mo_dependencies ${MO_CUDA_LIBRARIES})
target_compile_definitions(mo PUBLIC ${MO_CUDA_DEFINITIONS})
add_dependencies(mo mo_build_info)

# Instructions that only sm_90a has: code for it alone, beside kernels for every GPU.
if(MO_HOPPER_SOURCES)
  add_library(mo_hopper OBJECT ${MO_HOPPER_SOURCES})
  set_target_properties(mo_hopper PROPERTIES CUDA_ARCHITECTURES 90a-real)
  target_include_directories(mo_hopper PRIVATE include src)
  target_link_libraries(mo_hopper PRIVATE mo_options mo_dependencies ${MO_CUDA_LIBRARIES})
  target_compile_definitions(mo_hopper PRIVATE ${MO_CUDA_DEFINITIONS})
  target_sources(mo PRIVATE "$<TARGET_OBJECTS:mo_hopper>")
endif()

add_executable(moe-outliers ${mo_cli_sources})
target_include_directories(moe-outliers PRIVATE src)
target_link_libraries(moe-outliers PRIVATE mo)

if(MO_SANITIZE)
  add_library(mo_keep_loaded OBJECT tests/keep_loaded.c)
  target_link_libraries(mo_keep_loaded PRIVATE mo_options)
  target_link_libraries(mo INTERFACE "$<TARGET_OBJECTS:mo_keep_loaded>")
  target_link_options(mo INTERFACE -Wl,--export-dynamic-symbol=dlclose)
endif()

install(TARGETS moe-outliers RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
