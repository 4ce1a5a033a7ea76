# The vector kernels: one source, one object library for each instruction set. The registry takes the lists that
# the processor can run, so the files may use instructions that the rest of the library must not.
file(GLOB TAPER_SIMD_SOURCES CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/*.c)
set(TAPER_SIMD_FLAGS_avx2 -mavx2 -mfma -mf16c)
set(TAPER_SIMD_FLAGS_avx512 ${TAPER_SIMD_FLAGS_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl
                            -mprefer-vector-width=512)
set(TAPER_SIMD_FLAGS_avx512_bf16 ${TAPER_SIMD_FLAGS_avx512} -mavx512bf16)
set(TAPER_SIMD_FLAGS_amx ${TAPER_SIMD_FLAGS_avx512_bf16} -mamx-tile -mamx-bf16)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(TAPER_SIMD_ISAS amx avx512_bf16 avx512 avx2)
else()
  set(TAPER_SIMD_ISAS)
endif()

# Where bf16 has products of its own, these are all that differs.
file(GLOB TAPER_SIMD_PRODUCTS CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/gemm*.c ${CMAKE_CURRENT_LIST_DIR}/lora_*.c
     ${CMAKE_CURRENT_LIST_DIR}/*_bf16.c)
list(APPEND TAPER_SIMD_PRODUCTS ${CMAKE_CURRENT_LIST_DIR}/matmul.c ${CMAKE_CURRENT_LIST_DIR}/linear_cross_entropy.c
     ${CMAKE_CURRENT_LIST_DIR}/attention_few.c ${CMAKE_CURRENT_LIST_DIR}/row.c ${CMAKE_CURRENT_LIST_DIR}/simd.c)

# The kernels under a name, compiled with these flags.
function(taper_simd_library name)
  if(name MATCHES "amx|bf16|emulated")
    add_library(taper_simd_${name} OBJECT ${TAPER_SIMD_PRODUCTS})
  else()
    add_library(taper_simd_${name} OBJECT ${TAPER_SIMD_SOURCES})
  endif()
  target_include_directories(taper_simd_${name} PRIVATE ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/src)
  target_link_libraries(taper_simd_${name} PRIVATE taper_options)
  target_compile_definitions(taper_simd_${name} PRIVATE TPI_ISA=${name} TAPER_CUSTOM_KERNELS)
  target_compile_options(taper_simd_${name} PRIVATE ${TAPER_SIMD_LEVEL} ${ARGN})
endfunction()

# Sanitizers make unrolled code take long to compile, and the tile minutes where undefined behaviour is checked;
# its addresses still are.
set(TAPER_SIMD_LEVEL -O3)
if(TAPER_SANITIZE)
  set(TAPER_SIMD_LEVEL -O1)
  set_source_files_properties(${CMAKE_CURRENT_LIST_DIR}/gemm_tile.c PROPERTIES COMPILE_OPTIONS -fno-sanitize=undefined)
endif()

set(TAPER_SIMD_OBJECTS)
foreach(isa IN LISTS TAPER_SIMD_ISAS)
  taper_simd_library(${isa} ${TAPER_SIMD_FLAGS_${isa}})
  list(APPEND TAPER_SIMD_OBJECTS $<TARGET_OBJECTS:taper_simd_${isa}>)
endforeach()
