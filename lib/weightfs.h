/*
 * weightfs.h - the one header for C programs that want the pure parts of weightfs:
 * formats of model files, as functions over bytes and numbers.
 *
 *   lib/safetensors.h  judge and read the header of a safetensors file, and build one
 *   lib/dtype.h        its 22 element types
 *   lib/npy.h          the same for NumPy's .npy files; bring their data into C order
 *   lib/shard_plan.h   which tensor goes into which shard
 *   lib/shard_name.h   names of shards and of their index
 *   lib/shard_index.h  model.safetensors.index.json, read and written
 *   lib/size_text.h    "5GB" as a number
 *   lib/err.h          the reason beside an error number
 *   lib/base.h         sums and products that say when they overflow
 *
 * `make install` puts it, the headers that it includes, libweightfs.a and weightfs.pc below
 * PREFIX:
 *
 *   #include <weightfs/weightfs.h>
 *   cc program.c $(pkg-config --cflags --libs weightfs)
 *
 * docs/examples/ has a program for each part. None of these functions opens a file, prints,
 * exits or keeps state: any thread may call them, two threads not on the same object. Each
 * header says who owns what, and which errors there are.
 *
 * Stores and mounts are not here, though the archive holds them: their headers are not
 * installed and change without notice. A program reaches them by the files of a mount.
 *
 * For C from C11 on, by gcc or clang. The archive is for programs: its code is position
 * independent as far as executables need it, not for shared objects.
 */
#ifndef WEIGHTFS_H
#define WEIGHTFS_H

#include "lib/base.h"
#include "lib/dtype.h"
#include "lib/err.h"
#include "lib/npy.h"
#include "lib/safetensors.h"
#include "lib/shard_index.h"
#include "lib/shard_name.h"
#include "lib/shard_plan.h"
#include "lib/size_text.h"

#endif
