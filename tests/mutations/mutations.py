"""Small wrong changes of lib/ and fs/, each with the tests that it concerns first.

`old` must be in the file exactly once: who changes that code changes its mutation, too.
"""

from dataclasses import dataclass

ORDER, SEAL, STORE = "unit/test_order", "unit/test_seal", "unit/test_store"
FORMATS, FSCK, MODEL, REPACK = "unit/test_safetensors", "unit/test_fsck", "unit/test_model", "unit/test_repack"
BYTES, GATE, KILL = "mount/test_bytes.py", "mount/test_gate.py", "crash/test_kill.py"
BASED, DIRECT = "mount/test_model_based.py", "mount/test_passthrough.py"
WRITES = "mount/test_tensor_writes.py"


@dataclass(frozen=True)
class Mutation:
    name: str
    file: str
    old: str
    new: str
    tests: tuple


MUTATIONS = []


def mutation(name, file, old, new, *tests):
    MUTATIONS.append(Mutation(name, file, old, new, tests))


# ---- a flush that is left out, an order that is another ----

mutation("sealed before its bytes are flushed", "lib/seal.c",
         "ret = wfs_store_sync_staging(f->store, p->content->staging);", "ret = 0;", ORDER)
mutation("a data file is not flushed", "lib/datafile.c",
         "} else if (fdatasync(fd) != 0) {", "} else if (fd < 0) {", ORDER)
mutation("the directory of a data file is not flushed", "lib/datafile.c",
         "ret = sync_dir_of(t, df->id);", "ret = 0;", ORDER)
mutation("given back before that is durable", "lib/collect.c",
         "\tret = wfs_store_sync(s);\n\tfor (size_t i = 0; i < n && ret == 0; i++) {",
         "\tfor (size_t i = 0; i < n && ret == 0; i++) {", ORDER)
mutation("written in place before that is durable", "lib/unseal.c",
         "/* Before its first write: a power cut must not find a sealed file with other bytes. */\n"
         "\tif (!err)\n\t\terr = wfs_db_sync(&s->db);", "", ORDER)
mutation("the log is not flushed", "lib/db_log.c",
         "if (fdatasync(db->wal_fd) == 0)", "if (db->wal_fd >= 0)", ORDER)
mutation("SQLite's flush of the log is dropped", "lib/wal_file.c",
         "real(file)->pMethods->xSync(real(file), flags)", "SQLITE_OK", ORDER)
mutation("a whole copy is named before it is on the disk", "lib/repack.c",
         "return ret ? ret : wfs_datafile_sync(table, r->to->staging);", "return ret;", ORDER)
mutation("the last frame of a transaction stays in memory", "lib/wal_file.c",
         "return is_last ? flush(f) : SQLITE_OK;", "return SQLITE_OK;", "unit/test_wal_file", STORE, KILL)

# ---- what is shared ----

mutation("equal digests are equal bytes", "lib/seal_plan.c",
         "if (n != (ssize_t)part || memcmp(p->buf, p->buf2, part) != 0)", "if (n != (ssize_t)part)", SEAL)
mutation("equal digests within a file are equal bytes", "lib/seal_plan.c",
         "equal = is_equal(p, piece, p->content, before->offset);", "equal = 1;", SEAL)
mutation("every object of a digest is the first", "lib/object.c",
         "o->ordinal = ret ? last + 1 : 0;", "o->ordinal = 0;", SEAL)
mutation("an equal manifest is not counted", "lib/manifest.c",
         "return wfs_manifest_ref(db, *ret_id);", "return 0;", SEAL)
mutation("an object of a manifest is not counted", "lib/manifest.c",
         "ret = wfs_object_ref(db, ids[i], 1);", "ret = 0;", SEAL)
mutation("an object dies one reference too early", "lib/object.c", "if (refs > 1) {", "if (refs > 2) {", SEAL)
mutation("a copy does not count its manifest", "lib/clone.c",
         "ret = wfs_manifest_ref(&s->db, manifest);", "ret = 0;", SEAL)
mutation("a removed file keeps its manifest", "lib/name.c",
         "ret = wfs_manifest_unref(&s->db, a.manifest);", "ret = 0;", SEAL, STORE)
mutation("a file that is written keeps its manifest", "lib/unseal.c",
         "ret = wfs_manifest_unref(db, old->manifest);", "ret = 0;", SEAL, BYTES)
mutation("a manifest of several files is one's own", "lib/manifest.c",
         "if (ret <= 0 || refs != 1)", "if (ret <= 0)", SEAL, BYTES)
mutation("an object of several manifests is one's own", "lib/manifest.c",
         "!= count_id(ids, n, object))", "< count_id(ids, n, object))", SEAL, BYTES)
mutation("an object that others need moves to a whole copy", "lib/whole.c",
         "if (first.refs != next - i || first.data_file == s->whole)", "if (first.data_file == s->whole)", REPACK)

# ---- what is given back ----

mutation("a data file in use is doomed", "lib/object.c", "\tif (alive)\n", "\tif (alive && !data_file)\n", SEAL)
mutation("a part of a block is punched with it", "lib/collect.c",
         "to = to / block * block;", "to = (to + block - 1) / block * block;", SEAL, BYTES)
mutation("what lives behind a gap is punched with it", "lib/collect.c",
         "end = err ? end : WFS_MAX(end, behind);", "end = err ? end : offset;", SEAL)
mutation("punched while somebody reads", "lib/datafile.c",
         "ok = df->refs == 1;", "ok = df->refs >= 1;", SEAL, BYTES + "::test_readers_while_sealing",
         "mount/test_views_changes.py", "loaders/test_dedup.py")
mutation("given back while somebody has it mapped", "lib/datafile.c",
         "return try_lease(t, df, F_WRLCK) == 0;", "return true;", DIRECT + "::test_mapped_while_it_is_shared", DIRECT)
mutation("sealed while somebody can write it by a mapping", "lib/datafile.c",
         "return ret ? ret : try_lease(t, df, F_RDLCK);", "return ret;",
         DIRECT + "::test_mapping_that_outlives_its_descriptor")
mutation("an unlinked file stays", "fs/op_name.c",
         "if (!err && gone)\n\t\twfs_inode_gone(d, ino);", "", BYTES + "::test_write_after_unlink", "mount/test_load.py")
mutation("what the kernel forgets is counted once", "fs/inode.c",
         "inode->nlookup -= WFS_MIN(n, inode->nlookup);", "inode->nlookup--;", "mount/test_load.py")
mutation("an unlinked file outlives the kernel's knowledge", "fs/inode.c",
         "drop = inode->gone;", "drop = false;", "mount/test_load.py")

# ---- reading ----

mutation("the last extent is not found", "lib/content.c",
         "size_t low = 0, high = c->n;", "size_t low = 0, high = c->n - 1;", SEAL, BYTES)
mutation("a read goes on behind its extent", "lib/content.c",
         "return e->at + e->length - offset >= len ? e->df : NULL;", "return e->df;", SEAL)
mutation("holes and data exchanged", "lib/content.c",
         "found = whence == SEEK_DATA ? 0 :", "found = whence == SEEK_HOLE ? 0 :", BYTES + "::test_composed_seek", BASED)
mutation("the kernel keeps what it has cached of a file that is written directly", "fs/wire.c",
         "ret->open_flags = OPEN_PASSTHROUGH;", "ret->open_flags = OPEN_PASSTHROUGH | FOPEN_KEEP_CACHE;",
         DIRECT + "::test_cached_pages_are_not_stale", BASED)
mutation("each open of an inode chooses its own way", "fs/passthrough.c",
         "if (io->handles == 0)\n\t\tret = choose", "if (io->handles < 1000)\n\t\tret = choose", DIRECT, BASED)
mutation("two writers unseal at once", "lib/file.c",
         "while (f->changing)\n\t\tpthread_cond_wait(&f->changed, &f->lock);", "", SEAL)

# ---- the gate ----

mutation("an incomplete shard is renamed into place", "lib/gate.c",
         "return verdict >= WFS_VERDICT_INCOMPLETE && s->options.validate != WFS_VALIDATE_OFF",
         "return verdict > WFS_VERDICT_INCOMPLETE && s->options.validate != WFS_VALIDATE_OFF",
         GATE + "::test_renamed_into_place")
mutation("a bad shard replaces a good one", "lib/gate.c",
         "if (ret || verdict != WFS_VERDICT_VALID)", "if (ret || verdict == WFS_VERDICT_VALID)",
         GATE + "::test_a_bad_shard_does_not_replace_a_good_one")
mutation("another errno of close", "lib/gate.c",
         "return verdict == WFS_VERDICT_WRONG ? -EBADMSG : 0;", "return verdict == WFS_VERDICT_WRONG ? -EIO : 0;",
         GATE + "::test_written_by_python")
mutation("an exchange is judged one way", "lib/gate.c",
         "if (!ret && flags & RENAME_EXCHANGE && has_target)", "if (ret && flags & RENAME_EXCHANGE && has_target)",
         GATE + "::test_exchange_is_judged_both_ways")
mutation("tensors with a gap", "lib/safetensors.c",
         "if (t->begin == previous_end && t->end >= t->begin)", "if (t->begin >= previous_end && t->end >= t->begin)",
         FORMATS, GATE)
mutation("a shape of another size", "lib/safetensors.c",
         "if (bytes == t->end - t->begin)", "if (bytes <= t->end - t->begin)", FORMATS, GATE)
mutation("bytes behind the last tensor", "lib/safetensors.c",
         "\tif (want < file_size)\n", "\tif (want + 1 < file_size)\n", FORMATS, GATE)

# ---- names ----

mutation("a replaced file keeps its link", "lib/name.c",
         "err = lose_name(s, &r->target, r->new_parent, r->now);", "err = 0;", STORE, "mount/test_random.py")
mutation("a directory that is not empty is replaced", "lib/name.c",
         "return S_ISDIR(r->target.mode) ? must_be_empty(s, r->target.ino) : 0;", "return 0;", STORE,
         "posix/test_rename.py")
mutation("links of a directory that moves", "lib/name.c",
         "int err = touch_directory(s, from, -subdir, now);", "int err = touch_directory(s, from, subdir, now);", STORE,
         "mount/test_random.py")
mutation("the group of a set-gid directory", "lib/name.c",
         "uint32_t gid = dir->mode & S_ISGID ? dir->gid : new->gid;", "uint32_t gid = new->gid;", STORE,
         "posix/test_attributes.py")
mutation("XATTR_CREATE replaces", "lib/attr.c",
         "if (found && flags & XATTR_CREATE)\n\t\treturn -EEXIST;", "", STORE, BASED, "posix/test_xattrs.py")

# ---- after a crash ----

mutation("unlinked files stay after a crash", "lib/recover.c",
         "ret = drop_orphans(s, &orphans);", "ret = 0;", STORE, KILL)
mutation("files of transactions that were undone stay", "lib/recover.c",
         "ret = wfs_datafile_remove(&s->datafiles, id);", "ret = 0;", STORE)

# ---- tensors ----

mutation("a name that changed is not forgotten by the kernel", "fs/op_name.c",
         "if (!err)\n\t\tforget_moved(d, newparent, newname);", "",
         WRITES + "::test_shard_that_was_renamed")
mutation("a shard with other bytes is the same", "lib/model_plan.c",
         "if (p->is_new || &t->m->shards[p->old] != shard->old)", "if (&t->m->shards[p->old] != shard->old)", MODEL,
         WRITES)
mutation("a tensor replaces shards that are left out", "lib/model_put.c", "if (m->left_out[0]) {",
         "if (!m->left_out) {", MODEL, WRITES, "mount/test_views_sources.py")
mutation("a tensor that replaces another keeps that file", "lib/model_put.c",
         "if (found == WFS_PENDING_PUT && old != ino)\n\t\tret = wfs_model_unlink_inode(s, old, gone);", "", MODEL, WRITES)
mutation("an array with bytes behind it", "lib/npy.c",
         "\tif (want == file_size)\n", "\tif (want <= file_size)\n", "unit/test_npy", "mount/test_tensor_input.py")
