/*
 * shard_plan.h - which tensor goes into which shard.
 *
 * The rule of huggingface_hub's split_torch_state_dict_into_shards (1.x,
 * serialization/_base.py), which transformers and others save by: tensors are taken
 * in the order given and put into the open shard; one that would make it larger
 * than the limit closes it and opens the next. Nothing is reordered to fill
 * shards better. Pure, any thread; no names and no files here, see shard_name.h.
 */
#ifndef WFS_SHARD_PLAN_H
#define WFS_SHARD_PLAN_H

#include "lib/base.h"

/* Tensors at most. Two numbers of a shard stay free for the planner's own use. */
#define WFS_SHARD_PLAN_MAX (UINT32_MAX - 2)

/*
 * Plan the shards of n tensors.
 *
 * sizes[i]    bytes of tensor i, or of the storage behind it where that is shared;
 *             0 is a size like any other
 * storage[i]  tensors with the same number share one storage: they go where the
 *             first of them goes, and only its size counts; 0: a storage of its own.
 *             NULL: all have their own
 * max         bytes of a shard; a shard of exactly max is full, not too large
 *
 * A tensor larger than max gets a shard of its own at once, so its number is lower than
 * that of the shard that is open then, and the open one goes on behind it.
 *
 * ret_shard[i] is the shard of tensor i, from 0 (file names count from 1);
 * *ret_shards how many there are, each with a tensor in it. With n = 0 that is 0, as in
 * huggingface_hub: transformers then writes no file at all. A caller that wants
 * one that loads writes a single empty file.
 *
 * Sums cannot overflow: a shard never exceeds max but by one tensor alone.
 * Memory: 16 bytes for each tensor that has a storage number; time n log n of those, and n.
 * -EOVERFLOW: n > WFS_SHARD_PLAN_MAX. -ENOMEM. Then nothing is written.
 */
int wfs_shard_plan(const uint64_t *sizes, const uint64_t *storage, size_t n, uint64_t max,
	uint32_t *ret_shard, uint32_t *ret_shards) WFS_WARN_UNUSED;

#endif
