# The plug-in libtaper_cuda.so: built where nvcc is, loaded by libtaper when a GPU is asked for. Of CUDA only the
# static run-time library is linked; drivers and NVIDIA's other libraries are found when the plug-in runs.

set(TAPER_CUDA AUTO CACHE STRING "the CUDA plug-in: AUTO builds it where nvcc is found, ON requires it, OFF")
set(TAPER_CUDA_ARCHITECTURES auto CACHE STRING
    "what the plug-in has code for: auto (the GPUs that are here, else 90a), all, or a list as CMake's")
if(TAPER_CUDA STREQUAL "OFF")
  return()
endif()

# Says why there is none, which is an error where it is required.
function(taper_without_cuda why)
  if(TAPER_CUDA STREQUAL "ON")
    message(FATAL_ERROR "TAPER_CUDA=ON, and ${why}")
  endif()
  message(STATUS "The CUDA plug-in is not built: ${why}")
endfunction()

include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  taper_without_cuda("nvcc is not found")
  return()
endif()

# The capabilities of the GPUs that are here, a line each; empty where they cannot be asked.
function(ask_gpus out)
  set(${out} "" PARENT_SCOPE)
  find_program(NVIDIA_SMI nvidia-smi)
  if(NOT NVIDIA_SMI)
    return()
  endif()
  execute_process(COMMAND ${NVIDIA_SMI} --query-gpu=compute_cap --format=csv,noheader
                  OUTPUT_VARIABLE text RESULT_VARIABLE failed ERROR_QUIET)
  if(failed)
    return()
  endif()
  string(REGEX REPLACE "[ \t\r]*\n" ";" lines "${text}")
  list(FILTER lines INCLUDE REGEX "^[0-9]+[.][0-9]$")
  list(REMOVE_DUPLICATES lines)
  set(${out} ${lines} PARENT_SCOPE)
endfunction()

# As CMake names them; Hopper's own instructions want 90a, and nothing older than 80 multiplies bf16. Empty: the
# GPUs that are here are all older.
function(find_architectures out)
  ask_gpus(here)
  if(NOT here)
    set(here 9.0)
  endif()
  list(TRANSFORM here REPLACE "[.]" "")
  set(found "")
  foreach(capability ${here})
    if(capability GREATER_EQUAL 80)
      list(APPEND found ${capability})
    endif()
  endforeach()
  list(TRANSFORM found REPLACE "^90$" "90a")
  list(TRANSFORM found APPEND "-real")
  set(${out} ${found} PARENT_SCOPE)
endfunction()

# What a package has; PTX of the last serves what comes after it.
set(all_architectures 80-real 86-real 89-real 90a-real 100-real 120)

if(TAPER_CUDA_ARCHITECTURES STREQUAL "auto")
  find_architectures(CMAKE_CUDA_ARCHITECTURES)
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    taper_without_cuda("no GPU here has capability 8.0: name TAPER_CUDA_ARCHITECTURES")
    return()
  endif()
elseif(TAPER_CUDA_ARCHITECTURES STREQUAL "all")
  set(CMAKE_CUDA_ARCHITECTURES ${all_architectures})
else()
  set(CMAKE_CUDA_ARCHITECTURES ${TAPER_CUDA_ARCHITECTURES})
endif()
if(CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

# Files as text, for kernels that are compiled at run time.
set(TAPER_CUDA_TEXTS ${CMAKE_BINARY_DIR}/cuda)
set(text "")
foreach(file pointwise_table.h pointwise_formulas.cuh chain_prelude.cuh)
  file(READ ${CMAKE_CURRENT_LIST_DIR}/${file} more)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/${file})
  string(APPEND text "${more}")
endforeach()
string(REGEX REPLACE "([\\\"])" "\\\\\\1" text "${text}")
string(REPLACE "\n" "\\n\"\n\"" text "${text}")
file(CONFIGURE OUTPUT ${TAPER_CUDA_TEXTS}/chain_text.h @ONLY CONTENT "static const char chain_text[] = \"@text@\";\n")

file(GLOB TAPER_CUDA_SOURCES CONFIGURE_DEPENDS RELATIVE ${CMAKE_SOURCE_DIR} src/backend/cuda/*.c src/backend/cuda/*.cu)
add_library(taper_cuda MODULE ${TAPER_CUDA_SOURCES} src/backend/table.c src/core/shape.c)
set_target_properties(taper_cuda PROPERTIES CUDA_STANDARD 17 CUDA_VISIBILITY_PRESET hidden
                      CUDA_RUNTIME_LIBRARY Static LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
target_include_directories(taper_cuda PRIVATE include src ${TAPER_CUDA_TEXTS})
target_include_directories(taper_cuda SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
target_compile_definitions(taper_cuda PRIVATE _GNU_SOURCE TAPER_VERSION="${PROJECT_VERSION}")
target_compile_options(taper_cuda PRIVATE
  $<$<COMPILE_LANGUAGE:C>:-Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes>
  $<$<AND:$<COMPILE_LANGUAGE:C>,$<BOOL:${TAPER_WERROR}>>:-Werror>
  $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra --expt-relaxed-constexpr>
  $<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${TAPER_WERROR}>>:-Werror=all-warnings>)
target_link_libraries(taper_cuda PRIVATE CUDA::cudart_static Threads::Threads ${CMAKE_DL_LIBS})
install(TARGETS taper_cuda LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
