# The vector kernels: one source, one object library for each instruction set. The registry takes the lists that
# the processor can run, so the files may use instructions that the rest of the library must not.
file(GLOB TAPER_SIMD_SOURCES CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/*.c)
set(TAPER_SIMD_FLAGS_avx2 -mavx2 -mfma -mf16c)
set(TAPER_SIMD_FLAGS_avx512 ${TAPER_SIMD_FLAGS_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl
                            -mprefer-vector-width=512)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(TAPER_SIMD_ISAS avx512 avx2)
else()
  set(TAPER_SIMD_ISAS)
endif()

set(TAPER_SIMD_OBJECTS)
foreach(isa IN LISTS TAPER_SIMD_ISAS)
  add_library(taper_simd_${isa} OBJECT ${TAPER_SIMD_SOURCES})
  target_include_directories(taper_simd_${isa} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/include ${CMAKE_CURRENT_SOURCE_DIR}/src)
  target_link_libraries(taper_simd_${isa} PRIVATE taper_options)
  target_compile_definitions(taper_simd_${isa} PRIVATE TPI_ISA=${isa} TAPER_CUSTOM_KERNELS)
  target_compile_options(taper_simd_${isa} PRIVATE -O3 ${TAPER_SIMD_FLAGS_${isa}})
  list(APPEND TAPER_SIMD_OBJECTS $<TARGET_OBJECTS:taper_simd_${isa}>)
endforeach()
