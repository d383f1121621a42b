/* fsck_lost.c - the directory lost+found: names for what has lost its own. */
#include "lib/fsck_fix.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#define LOST "lost+found"
#define NOTES_MAX (4 << 20) /* bytes of the file that says what was done */

static int name_is_taken(struct wfs_fix *fix, int64_t parent, const void *name, size_t len)
{
	int64_t one;

	return wfs_fix_number(fix, "SELECT 1 FROM dirent WHERE parent = ? AND name = ?", &one, "ib",
		parent, name, len);
}

int wfs_lost_free_name(struct wfs_fix *fix, int64_t parent, const void *name, size_t len,
	char ret[WFS_LOST_NAME], size_t *ret_len)
{
	char legal[WFS_LOST_NAME];
	int taken;

	len = WFS_MIN(len, (size_t)WFS_LOST_NAME - 21);
	if (len > 0)
		memcpy(legal, name, len);
	for (size_t i = 0; i < len; i++)
		if (legal[i] == '\0' || legal[i] == '/')
			legal[i] = '_';
	if (len == 0 || (len == 1 && legal[0] == '.') || (len == 2 && !memcmp(legal, "..", 2)))
		legal[len++] = '_';
	memcpy(ret, legal, len);
	ret[len] = '\0';
	*ret_len = len;
	for (int n = 1; (taken = name_is_taken(fix, parent, ret, *ret_len)) > 0; n++)
		*ret_len = len + (size_t)snprintf(ret + len, WFS_LOST_NAME - len, "~%d", n);
	return taken;
}

static int make_directory(struct wfs_fix *fix)
{
	char name[WFS_LOST_NAME];
	size_t len;
	int ret = wfs_lost_free_name(fix, WFS_FSCK_ROOT, LOST, strlen(LOST), name, &len);

	if (ret == 0)
		ret = wfs_fix_exec(fix,
			"INSERT INTO inode (mode, uid, gid, nlink, atime_ns, mtime_ns, ctime_ns, btime_ns)"
			" SELECT 16832, r.uid, r.gid, 2, ?1, ?1, ?1, ?1 FROM inode r WHERE r.ino = 1", "i",
			fix->now_ns);
	if (ret)
		return ret;
	fix->lost_dir = wfs_fix_insert_id(fix);
	ret = wfs_fix_exec(fix, "INSERT INTO dirent (parent, name, ino) VALUES (1, ?, ?)", "bi", name,
		len, fix->lost_dir);
	return ret ? ret : wfs_fix_exec(fix, "UPDATE inode SET nlink = nlink + 1 WHERE ino = 1", "");
}

static int need_directory(struct wfs_fix *fix)
{
	int64_t ino = 0;
	int found;

	fix->has_notes = true;
	if (fix->lost_dir)
		return 0;
	found = wfs_fix_number(fix, "SELECT i.ino FROM dirent d JOIN inode i ON i.ino = d.ino"
		" WHERE d.parent = 1 AND d.name = ? AND " WFS_FSCK_IS_DIR("i"), &ino, "b", LOST,
		strlen(LOST));
	if (found > 0)
		fix->lost_dir = ino;
	return found == 0 ? make_directory(fix) : WFS_MIN(found, 0);
}

int wfs_lost_link(struct wfs_fix *fix, int64_t ino, const void *name, size_t len, char *ret_name)
{
	char text[WFS_LOST_NAME];
	int ret = need_directory(fix);

	if (ret == 0)
		ret = wfs_lost_free_name(fix, fix->lost_dir, name, len, text, &len);
	if (ret == 0 && ret_name)
		memcpy(ret_name, text, len + 1);
	return ret ? ret : wfs_fix_exec(fix, "INSERT INTO dirent (parent, name, ino) VALUES (?, ?, ?)",
			     "ibi", fix->lost_dir, text, len, ino);
}

int wfs_lost_move(struct wfs_fix *fix, int64_t dirent, const void *name, size_t len)
{
	char text[WFS_LOST_NAME];
	int ret = need_directory(fix);

	if (ret == 0)
		ret = wfs_lost_free_name(fix, fix->lost_dir, name, len, text, &len);
	return ret ? ret : wfs_fix_exec(fix, "UPDATE dirent SET parent = ?, name = ? WHERE id = ?",
			     "ibi", fix->lost_dir, text, len, dirent);
}

/* ---- new files ---- */

static int new_inode(struct wfs_fix *fix, int64_t size, int64_t manifest, int64_t data_file,
	const char *name, char *ret_name, int64_t *ret_ino)
{
	int ret = need_directory(fix);

	if (ret == 0)
		ret = wfs_fix_exec(fix,
			"INSERT INTO inode (mode, uid, gid, nlink, size, blocks, atime_ns, mtime_ns,"
			" ctime_ns, btime_ns, manifest, data_file) SELECT 33152, r.uid, r.gid, 1, ?1,"
			" (?1 + 511) / 512, ?2, ?2, ?2, ?2, ?3, ?4 FROM inode r WHERE r.ino = 1", "iioo",
			size, fix->now_ns, manifest, data_file);
	if (ret)
		return ret;
	*ret_ino = wfs_fix_insert_id(fix);
	return wfs_lost_link(fix, *ret_ino, name, strlen(name), ret_name);
}

static void say_placed(struct wfs_fix *fix, const char *kind, const char *noun, int64_t id,
	const char *name, const char *text)
{
	struct wfs_fsck_line line = { .len = 0 };

	wfs_fsck_add_bytes(&line, name, strlen(name));
	wfs_fix_sayf(fix, kind, noun, id, "%s; it is kept as /" LOST "/%s", text, line.text);
}

int wfs_lost_manifest(struct wfs_fix *fix, const char *kind, int64_t manifest, const char *name,
	const char *text)
{
	char as[WFS_LOST_NAME] = "";
	int64_t size = 0, ino;
	int ret = wfs_fix_number(fix, "SELECT size FROM manifest WHERE id = ?", &size, "i", manifest);

	if (ret < 0)
		return ret;
	ret = new_inode(fix, size, manifest, 0, name, as, &ino);
	if (ret == 0)
		say_placed(fix, kind, "manifest", manifest, as, text);
	return ret;
}

static struct wfs_digest digest_of_id(int64_t id)
{
	uint8_t le[8];

	for (unsigned i = 0; i < sizeof(le); i++)
		le[i] = (uint8_t)((uint64_t)id >> (8 * i));
	return wfs_digest_of(le, sizeof(le), 128);
}

/* A content of this object alone: the one that there is, or a new one. */
static int manifest_of_object(struct wfs_fix *fix, int64_t object, int64_t *ret_id)
{
	struct wfs_digest digest = digest_of_id(object);
	int ret = wfs_fix_number(fix, "SELECT m.id FROM manifest m JOIN manifest_object c"
		" ON c.manifest = m.id WHERE m.digest = ?1 AND m.objects = 1 AND c.seq = 0"
		" AND c.object = ?2", ret_id, "bi", digest.bytes, sizeof(digest.bytes), object);

	if (ret != 0)
		return WFS_MIN(ret, 0);
	ret = wfs_fix_exec(fix, "INSERT INTO manifest (digest, size, objects, refs)"
		" SELECT ?1, length, 1, 1 FROM object WHERE id = ?2", "bi", digest.bytes,
		sizeof(digest.bytes), object);
	if (ret)
		return ret;
	*ret_id = wfs_fix_insert_id(fix);
	return wfs_fix_exec(fix, "INSERT INTO manifest_object (manifest, seq, object)"
		" VALUES (?, 0, ?)", "ii", *ret_id, object);
}

static int new_file_of_object(struct wfs_fix *fix, int64_t object, const char *name, char *ret_name)
{
	int64_t manifest = 0, size = 0, ino;
	int ret = manifest_of_object(fix, object, &manifest);

	if (ret == 0)
		ret = wfs_fix_number(fix, "SELECT length FROM object WHERE id = ?", &size, "i", object);
	return ret < 0 ? ret : new_inode(fix, size, manifest, 0, name, ret_name, &ino);
}

int wfs_lost_object(struct wfs_fix *fix, const char *kind, int64_t object, const char *name,
	const char *text)
{
	char as[WFS_LOST_NAME] = "";
	int ret = new_file_of_object(fix, object, name, as);

	if (ret == 0)
		say_placed(fix, kind, "object", object, as, text);
	return ret;
}

int wfs_lost_data_file(struct wfs_fix *fix, const char *kind, int64_t id, const char *name,
	const char *text)
{
	char as[WFS_LOST_NAME] = "";
	int64_t ino, size = wfs_fix_file_size(fix, id);
	int ret = wfs_fix_exec(fix, "UPDATE data_file SET state = 0, holes = 0 WHERE id = ?", "i", id);

	if (ret == 0)
		ret = new_inode(fix, WFS_MAX(size, 0), 0, id, name, as, &ino);
	if (ret == 0)
		say_placed(fix, kind, "data_file", id, as, text);
	return ret;
}

static int object_of_bytes(struct wfs_fix *fix, const void *bytes, size_t len, int64_t *ret_id)
{
	struct wfs_digest digest = wfs_digest_of(bytes, len, 128);
	int ret = wfs_fix_number(fix, "SELECT o.id FROM object o JOIN object_bytes b ON b.object = o.id"
		" WHERE o.digest = ? AND b.bytes = ?", ret_id, "bb", digest.bytes,
		sizeof(digest.bytes), bytes, len);

	if (ret != 0)
		return WFS_MIN(ret, 0);
	ret = wfs_fix_exec(fix, "INSERT INTO object (digest, ordinal, length, refs)"
		" SELECT ?1, coalesce(max(ordinal) + 1, 0), ?2, 1 FROM object WHERE digest = ?1", "bi",
		digest.bytes, sizeof(digest.bytes), (int64_t)len);
	if (ret)
		return ret;
	*ret_id = wfs_fix_insert_id(fix);
	return wfs_fix_exec(fix, "INSERT INTO object_bytes (object, bytes) VALUES (?, ?)", "ib", *ret_id,
		bytes, len);
}

static int file_of_bytes(struct wfs_fix *fix, const char *name, const void *bytes, size_t len,
	char *ret_name)
{
	int64_t object = 0, ino;
	int ret;

	if (len == 0)
		return new_inode(fix, 0, 0, 0, name, ret_name, &ino);
	ret = object_of_bytes(fix, bytes, len, &object);
	return ret ? ret : new_file_of_object(fix, object, name, ret_name);
}

int wfs_lost_bytes(struct wfs_fix *fix, const char *kind, const char *name, const void *bytes,
	size_t len, const char *text)
{
	char as[WFS_LOST_NAME] = "";
	int ret = file_of_bytes(fix, name, bytes, len, as);
	struct wfs_fsck_line line = { .len = 0 };

	if (ret)
		return ret;
	wfs_fsck_add(&line, "%s; it is kept as /" LOST "/", text);
	wfs_fsck_add_bytes(&line, as, strlen(as));
	wfs_fix_say(fix, kind, name, line.text);
	return 0;
}

int wfs_lost_write_notes(struct wfs_fix *fix)
{
	WFS_AUTO_FREE char *text = NULL;
	char name[64], as[WFS_LOST_NAME] = "";
	time_t now = (time_t)(fix->now_ns / 1000000000);
	struct tm tm;
	long size = ftell(fix->notes);
	size_t len = size > 0 ? WFS_MIN((size_t)size, (size_t)NOTES_MAX) : 0;

	if (!fix->has_notes || len == 0)
		return 0;
	text = malloc(len);
	if (!text)
		return -ENOMEM;
	fflush(fix->notes);
	rewind(fix->notes);
	if (fread(text, 1, len, fix->notes) != len)
		/* cppcheck-suppress memleak; WFS_AUTO_FREE */
		return -EIO;
	fseek(fix->notes, size, SEEK_SET);
	gmtime_r(&now, &tm);
	strftime(name, sizeof(name), "fsck-%Y-%m-%dT%H-%M-%SZ.txt", &tm);
	return file_of_bytes(fix, name, text, len, as);
}
