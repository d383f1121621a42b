/* A copy that shares the manifest: lib/file_priv.h, DESIGN §4.6. */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/crash.h"
#include "lib/datafile_state.h"
#include "lib/file_priv.h"
#include "lib/manifest.h"
#include "lib/seal.h"

/* Within a transaction: `out` names the manifest of `in`. */
static int share(struct wfs_store *s, uint64_t in, uint64_t out, uint64_t manifest)
{
	int64_t now = wfs_now_ns();
	struct wfs_attr a, b;
	int ret = wfs_inode_get(s, in, &a);

	if (ret > 0)
		ret = wfs_inode_get(s, out, &b);
	if (ret <= 0)
		return ret ? ret : -ESTALE;
	if (a.manifest != manifest || b.size != 0)
		return -ESTALE;
	ret = wfs_manifest_ref(&s->db, manifest);
	if (ret == 0 && b.manifest)
		ret = wfs_manifest_unref(&s->db, b.manifest);
	if (ret == 0 && b.data_file)
		ret = wfs_db_run(&s->db, WFS_Q_DATA_STATE, "ii", (uint64_t)WFS_DATA_DOOMED,
			b.data_file);
	return ret ? ret : wfs_db_run(&s->db, WFS_Q_INODE_SEAL, "iiiiii", manifest, a.size,
		a.blocks, now, now, out);
}

int wfs_clone(struct wfs_file *in, struct wfs_file *out)
{
	struct wfs_store *s = out->store;
	struct wfs_content *c;
	int ret;

	/* -EBUSY: somebody writes it; -EFBIG: it is not to be sealed. Then its bytes are copied. */
	if (wfs_file_is_dirty(in)) {
		ret = wfs_seal(s, in->ino, NULL);
		if (ret)
			return ret == -EBUSY || ret == -ETXTBSY || ret == -EFBIG ? 0 : ret;
	}
	wfs_file_begin_change(out);
	c = wfs_file_content(in);
	ret = c->manifest ? wfs_pin_begin_hollow(out) : -ESTALE;
	if (ret == 0) {
		wfs_crash_at("clone-before-commit");
		ret = wfs_db_begin(&s->db);
		if (ret == 0)
			ret = wfs_db_end(&s->db, share(s, in->ino, out->ino, c->manifest));
		wfs_crash_at("clone-after-commit");
		if (ret)
			wfs_pin_cancel_hollow(out);
	}
	wfs_file_end_change(out, ret == 0 ? wfs_content_ref(c) : NULL);
	wfs_content_unref(c);
	if (ret == 0)
		atomic_store(&s->collect_wanted, true);
	return ret == 0 ? 1 : ret == -ESTALE || ret == -EOPNOTSUPP ? 0 : ret;
}
