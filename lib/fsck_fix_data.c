/* fsck_fix_data.c - what is in data/ and should not be; content that nothing names. */
#include "lib/fsck_fix.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/array.h"
#include "lib/datafile.h"
#include "lib/format.h"
#include "lib/listdir.h"

/* ---- the directory data/ ---- */

/* Out of the way, to KEPT/data/…; `path` is below data/. */
static int set_aside(struct wfs_fix *fix, const char *path)
{
	WFS_AUTO_FREE char *to = NULL;
	char *slash;
	int ret;

	if (fix->dry_run)
		return 0;
	to = wfs_format("data/%s", path);
	if (!to)
		return -ENOMEM;
	ret = wfs_fix_mkdir(fix->kept_fd, "data");
	slash = strrchr(to, '/');
	*slash = '\0';
	if (ret == 0)
		ret = wfs_fix_mkdir(fix->kept_fd, to);
	if (ret)
		return wfs_err_errno(fix->run->err, ret, "%s", to);
	*slash = '/';
	if (renameat(fix->run->data_fd, path, fix->kept_fd, to) != 0)
		return wfs_err_errno(fix->run->err, -errno, "%s", to);
	return 0;
}

static int say_set_aside(struct wfs_fix *fix, const char *path, const char *why)
{
	struct wfs_fsck_line where = { .len = 0 }, text = { .len = 0 };

	wfs_fsck_add(&where, "data/");
	wfs_fsck_add_bytes(&where, path, strlen(path));
	wfs_fsck_add(&text, "%s; it is moved out of the way, to data/ in the directory before-repair", why);
	wfs_fix_say(fix, "data-file-stray", where.text, text.text);
	return set_aside(fix, path);
}

/* Give the file a second name, as data file `id`; or a copy, where links cannot be made. */
static int link_as(struct wfs_fix *fix, const char *path, int64_t id)
{
	char to[WFS_FSCK_PATH_SIZE], dir[3] = "";
	int ret;

	if (fix->dry_run)
		return 0;
	wfs_fsck_data_path(id, to);
	memcpy(dir, to, 2);
	ret = wfs_fix_mkdir(fix->run->data_fd, dir);
	if (ret)
		return wfs_err_errno(fix->run->err, ret, "data/%s", dir);
	if (linkat(fix->run->data_fd, path, fix->run->data_fd, to, 0) != 0)
		return wfs_err_errno(fix->run->err, -errno, "data/%s cannot be linked to data/%s", path, to);
	/* Whoever put it there may have left it read-only; ours are written to. */
	if (fchmodat(fix->run->data_fd, to, 0600, 0) != 0)
		return wfs_err_errno(fix->run->err, -errno, "data/%s", to);
	return 0;
}

static int has_data_row(struct wfs_fix *fix, int64_t id)
{
	int64_t one;

	return wfs_fix_number(fix, "SELECT 1 FROM data_file WHERE id = ?", &one, "i", id);
}

/* A regular file without a row, or under a name that is none: a new file in lost+found. */
static int adopt(struct wfs_fix *fix, const char *path, const char *name)
{
	struct wfs_fsck_line text = { .len = 0 };
	int64_t id = 0;
	int ret = wfs_fix_new_data_file(fix, 0, &id);

	if (ret == 0)
		ret = link_as(fix, path, id);
	wfs_fsck_add(&text, "data/");
	wfs_fsck_add_bytes(&text, path, strlen(path));
	wfs_fsck_add(&text, " is no data file");
	if (ret == 0)
		ret = wfs_lost_data_file(fix, "data-file-stray", id, name, text.text);
	return ret ? ret : set_aside(fix, path);
}

/* Is it the file that is missing elsewhere? */
static int put_back(struct wfs_fix *fix, const char *path, const char *name)
{
	int64_t id = (int64_t)strtoull(name, NULL, 16);
	int ret;

	if (!wfs_datafile_is_hex(name, 16) || id < 1 || wfs_fix_file_size(fix, id) >= 0)
		return 0;
	ret = fix->run->failed ? fix->run->failed : has_data_row(fix, id);
	if (ret <= 0)
		return ret;
	ret = link_as(fix, path, id);
	if (ret)
		return ret;
	wfs_fix_sayf(fix, "data-file-stray", "data_file", id, "it was at data/%s, and is put back", path);
	ret = set_aside(fix, path);
	return ret ? ret : 1;
}

static int fix_regular(struct wfs_fix *fix, const char *dir, const char *path, const char *name,
	const struct stat *st)
{
	char text[80], as[64];
	int64_t id = (int64_t)strtoull(name, NULL, 16);
	int ret;

	if (wfs_datafile_is_hex(name, 16) && dir && strcmp(name + 14, dir) == 0 && id >= 1 && id <= WFS_FIX_MAX_ID) {
		ret = has_data_row(fix, id);
		if (ret != 0)
			return WFS_MIN(ret, 0);
		if (!wfs_fix_holds_bytes(fix, id))
			return say_set_aside(fix, path, "it has no row and no bytes");
		ret = wfs_fix_exec(fix, "INSERT INTO data_file (id, state) VALUES (?, 0)", "i", id);
		snprintf(text, sizeof(text), "table data_file had no row for it");
		snprintf(as, sizeof(as), "data-file-%s", name);
		return ret ? ret : wfs_lost_data_file(fix, "data-file-stray", id, as, text);
	}
	ret = put_back(fix, path, name);
	if (ret != 0)
		return WFS_MIN(ret, 0);
	if (st->st_size == 0)
		return say_set_aside(fix, path, "it is no data file, and empty");
	return adopt(fix, path, name);
}

static int fix_entry(struct wfs_fix *fix, const char *dir, const char *name)
{
	WFS_AUTO_FREE char *path = wfs_format("%s%s%s", dir ? dir : "", dir ? "/" : "", name);
	struct stat st;

	if (!path)
		return -ENOMEM;
	if (fstatat(fix->run->data_fd, path, &st, AT_SYMLINK_NOFOLLOW) != 0)
		return errno == ENOENT ? 0 : wfs_err_errno(fix->run->err, -errno, "data/%s", path);
	if (S_ISREG(st.st_mode))
		return fix_regular(fix, dir, path, name, &st);
	return say_set_aside(fix, path, "it is no regular file");
}

/* All names of a directory first: what is done changes it. */
struct names {
	char **list;
	size_t n, room;
};

static void free_names(struct names *names)
{
	for (size_t i = 0; i < names->n; i++)
		free(names->list[i]);
	free(names->list);
}

static int add_name(void *ctx, int dir_fd, const char *name)
{
	struct names *names = ctx;

	(void)dir_fd;
	if (WFS_ARRAY_ROOM(names->list, names->n, names->room) || !(names->list[names->n] = strdup(name)))
		return -ENOMEM;
	names->n++;
	return 0;
}

static int list_names(struct wfs_fix *fix, const char *path, struct names *ret)
{
	int err = wfs_listdir(fix->run->data_fd, path, add_name, ret);

	return err ? wfs_err_errno(fix->run->err, err, "data/%s", path) : 0;
}

static int fix_directory(struct wfs_fix *fix, const char *name)
{
	struct names names = { NULL, 0, 0 };
	struct stat st;
	int ret;

	if (fstatat(fix->run->data_fd, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
		return 0;
	if (!wfs_datafile_is_hex(name, 2) || !S_ISDIR(st.st_mode))
		return fix_entry(fix, NULL, name);
	ret = list_names(fix, name, &names);
	for (size_t i = 0; i < names.n && ret == 0; i++)
		ret = fix_entry(fix, name, names.list[i]);
	free_names(&names);
	return ret;
}

int wfs_fix_strays(struct wfs_fix *fix)
{
	struct names names = { NULL, 0, 0 };
	int ret = list_names(fix, ".", &names);

	for (size_t i = 0; i < names.n && ret == 0; i++)
		ret = fix_directory(fix, names.list[i]);
	free_names(&names);
	return ret;
}

/* ---- what nothing names ---- */

static int name_objects(struct wfs_fix *fix)
{
	struct wfs_fix_rows rows;
	int ret = wfs_fix_rows(fix, "SELECT o.id, o.data_file, (SELECT count(*) FROM object_bytes b"
		" WHERE b.object = o.id) FROM object o WHERE o.id NOT IN"
		" (SELECT object FROM manifest_object)", &rows, "");

	for (size_t i = 0; i < rows.n && ret == 0; i++) {
		const struct wfs_fix_row *r = &rows.list[i];
		char name[40];

		snprintf(name, sizeof(name), "object-%lld", (long long)r->a);
		if (r->c > 0 || (r->b > 0 && wfs_fix_file_size(fix, r->b) >= 0)) {
			ret = wfs_lost_object(fix, "object-refs", r->a, name, "no manifest named it");
			continue;
		}
		wfs_fix_sayf(fix, "object-refs", "object", r->a,
			"no manifest names it and it has no bytes; the row is dropped");
		ret = wfs_fix_exec(fix, "DELETE FROM object WHERE id = ?", "i", r->a);
	}
	free(rows.list);
	return ret;
}

static int name_manifests(struct wfs_fix *fix)
{
	struct wfs_fix_rows rows;
	/* What was dead in order has no digest, and is taken apart by the next mount. */
	int ret = wfs_fix_rows(fix, "SELECT m.id FROM manifest m WHERE NOT EXISTS"
		" (SELECT 1 FROM inode i WHERE i.manifest = m.id)"
		" AND (m.refs <> 0 OR m.digest IS NOT NULL OR ?)", &rows, "i", (int64_t)fix->settled);

	for (size_t i = 0; i < rows.n && ret == 0; i++) {
		char name[40];

		snprintf(name, sizeof(name), "manifest-%lld", (long long)rows.list[i].a);
		ret = wfs_lost_manifest(fix, "manifest-refs", rows.list[i].a, name, "no file had this content");
		if (ret == 0)
			ret = wfs_fix_exec(fix, "UPDATE manifest SET refs = 1 WHERE id = ?", "i",
				rows.list[i].a);
	}
	free(rows.list);
	return ret;
}

static int drop_data_file(struct wfs_fix *fix, int64_t id)
{
	char path[WFS_FSCK_PATH_SIZE];
	int ret = 0;

	wfs_fsck_data_path(id, path);
	wfs_fix_sayf(fix, "data-file-empty", "data_file", id,
		"nothing names it and it holds no bytes; the row is dropped");
	if (wfs_fix_file_size(fix, id) >= 0)
		ret = set_aside(fix, path);
	return ret ? ret : wfs_fix_exec(fix, "DELETE FROM data_file WHERE id = ?", "i", id);
}

static int name_data_files(struct wfs_fix *fix)
{
	struct wfs_fix_rows rows;
	int ret = wfs_fix_rows(fix, "SELECT d.id FROM data_file d WHERE (d.state IN (0, 1) OR ?)"
		" AND NOT EXISTS (SELECT 1 FROM object o WHERE o.data_file = d.id)"
		" AND NOT EXISTS (SELECT 1 FROM manifest m WHERE m.whole = d.id)"
		" AND NOT EXISTS (SELECT 1 FROM inode i WHERE i.data_file = d.id)", &rows, "i",
		(int64_t)fix->settled);

	for (size_t i = 0; i < rows.n && ret == 0; i++) {
		int64_t id = rows.list[i].a;
		char name[40];

		snprintf(name, sizeof(name), "data-file-%016llx", (unsigned long long)id);
		ret = wfs_fix_holds_bytes(fix, id)
			? wfs_lost_data_file(fix, "data-file-empty", id, name, "nothing named it")
			: drop_data_file(fix, id);
	}
	free(rows.list);
	return ret;
}

int wfs_fix_unnamed(struct wfs_fix *fix)
{
	int ret = name_objects(fix);

	if (ret == 0)
		ret = name_manifests(fix);
	return ret ? ret : name_data_files(fix);
}
