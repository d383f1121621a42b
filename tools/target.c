#include "tools/target.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "tools/ui.h"

/* ---- mounts ---- */

/* Decode \040 and its like in place. */
static void decode_octal(char *s)
{
	char *to = s;

	while (*s) {
		if (s[0] == '\\' && s[1] >= '0' && s[1] <= '3' && s[2] >= '0' && s[2] <= '7' &&
			s[3] >= '0' && s[3] <= '7') {
			*to++ = (char)((s[1] - '0') << 6 | (s[2] - '0') << 3 | (s[3] - '0'));
			s += 4;
		} else {
			*to++ = *s++;
		}
	}
	*to = 0;
}

static char *take_field(char **rest)
{
	char *field = strsep(rest, " ");

	if (!field)
		return NULL;
	field = ui_format("%s", field);
	decode_octal(field);
	return field;
}

static void mount_release(struct target_mount *m)
{
	free(m->device);
	free(m->root);
	free(m->mountpoint);
	free(m->fstype);
	free(m->source);
}

/*
 * proc_pid_mountinfo(5): id parent major:minor root mountpoint options
 * [optional …] - fstype source superoptions
 */
static bool parse_line(char *line, struct target_mount *ret)
{
	char *rest = line, *field;

	memset(ret, 0, sizeof(*ret));
	line[strcspn(line, "\n")] = 0;
	strsep(&rest, " ");
	strsep(&rest, " ");
	ret->device = take_field(&rest);
	ret->root = take_field(&rest);
	ret->mountpoint = take_field(&rest);
	do
		field = strsep(&rest, " ");
	while (field && strcmp(field, "-"));
	ret->fstype = take_field(&rest);
	ret->source = take_field(&rest);
	if (ret->source)
		return true;
	mount_release(ret);
	return false;
}

int target_mounts_read(struct target_mounts *ret)
{
	WFS_AUTO_FREE char *line = NULL;
	struct target_mount mount;
	size_t room = 0;
	FILE *f = fopen("/proc/self/mountinfo", "re");

	memset(ret, 0, sizeof(*ret));
	if (!f)
		return ui_error("is /proc mounted?", "/proc/self/mountinfo: %s", strerror(errno));
	while (getline(&line, &room, f) > 0) {
		if (!parse_line(line, &mount))
			continue;
		UI_ARRAY_ROOM(ret->list, ret->n, ret->room);
		ret->list[ret->n++] = mount;
	}
	fclose(f);
	return 0;
}

void target_mounts_release(struct target_mounts *m)
{
	for (size_t i = 0; i < m->n; i++)
		mount_release(&m->list[i]);
	free(m->list);
	memset(m, 0, sizeof(*m));
}

/* What of `path` is below `dir`: "" for itself, "/a" below; NULL if it is elsewhere. */
static const char *below(const char *path, const char *dir)
{
	size_t n = strlen(dir);

	while (n > 0 && dir[n - 1] == '/')
		n--;
	if (strncmp(path, dir, n) || (path[n] && path[n] != '/'))
		return NULL;
	return path + n;
}

const struct target_mount *target_mounts_of_path(const struct target_mounts *m, const char *path)
{
	const struct target_mount *best = NULL;

	for (size_t i = 0; i < m->n; i++)
		if (below(path, m->list[i].mountpoint) &&
			(!best || strlen(m->list[i].mountpoint) >= strlen(best->mountpoint)))
			best = &m->list[i];
	return best;
}

const struct target_mount *target_mounts_of_store(const struct target_mounts *m, const char *store)
{
	const struct target_mount *found = NULL;

	for (size_t i = 0; i < m->n; i++)
		if (!strcmp(m->list[i].fstype, TARGET_FSTYPE) && !strcmp(m->list[i].source, store))
			found = &m->list[i];
	return found;
}

/* ---- paths ---- */

char *target_absolute(const char *path)
{
	char *real = realpath(path, NULL);
	WFS_AUTO_FREE char *whole = NULL;
	WFS_AUTO_FREE char *parent = NULL;
	size_t n = strlen(path);
	const char *base;

	if (real)
		return real;
	/* the last component cannot be followed: its parent perhaps can */
	while (n > 1 && path[n - 1] == '/')
		n--;
	whole = ui_format("%.*s", (int)n, path);
	base = strrchr(whole, '/');
	base = base ? base + 1 : whole;
	parent = realpath(".", NULL);
	if (base != whole) {
		free(parent);
		real = ui_format("%.*s", (int)(base - whole), whole);
		parent = realpath(real, NULL);
		free(real);
	}
	if (!parent)
		return ui_format("%s", path);
	return ui_format("%s/%s", strcmp(parent, "/") ? parent : "", base);
}

static bool holds_store(const char *dir)
{
	WFS_AUTO_FREE char *db = ui_format("%s/weightfs.db", dir);
	struct stat st;

	return lstat(db, &st) == 0 && S_ISREG(st.st_mode);
}

/*
 * A path that is there: in a mount, or a store itself. 1 found, 0 neither.
 */
static int resolve_existing(const struct target_mounts *mounts, const char *text,
	struct target *ret)
{
	WFS_AUTO_FREE char *path = target_absolute(text);
	const struct target_mount *mount = target_mounts_of_path(mounts, path);

	if (mount && !strcmp(mount->fstype, TARGET_FSTYPE)) {
		const char *rest = below(path, mount->mountpoint);

		ret->store = ui_format("%s", mount->source);
		ret->path = ui_format("%s%s", strcmp(mount->root, "/") ? mount->root : "",
			*rest || strcmp(mount->root, "/") ? rest : "/");
		ret->mountpoint = ui_format("%s", mount->mountpoint);
		return 1;
	}
	if (!holds_store(path))
		return 0;
	mount = target_mounts_of_store(mounts, path);
	ret->store = ui_format("%s", path);
	ret->path = ui_format("/");
	ret->mountpoint = mount ? ui_format("%s", mount->mountpoint) : NULL;
	return 1;
}

/* STORE:PATH or DIR:PATH, cut at the first colon where that makes sense. */
static int resolve_cut(const struct target_mounts *mounts, const char *text, struct target *ret)
{
	for (const char *colon = strchr(text, ':'); colon; colon = strchr(colon + 1, ':')) {
		WFS_AUTO_FREE char *dir = ui_format("%.*s", (int)(colon - text), text);
		const char *path = colon + 1;
		char *whole;

		if (!*dir || resolve_existing(mounts, dir, ret) == 0)
			continue;
		while (*path == '/')
			path++;
		whole = ui_format("%s%s%s", ret->path, strcmp(ret->path, "/") && *path ? "/" : "",
			path);
		free(ret->path);
		ret->path = whole;
		return 1;
	}
	return 0;
}

static int say_unresolved(const char *text)
{
	struct stat st;

	if (lstat(text, &st) < 0)
		return ui_error(NULL, "%s: %s", text, strerror(errno));
	return ui_error("a store is a directory that holds weightfs.db; `weightfs mount STORE DIR` "
			"makes one",
		"%s: neither a store nor in a mount of weightfs", text);
}

int target_resolve(const char *text, struct target *ret)
{
	struct target_mounts mounts;
	struct stat st;
	int found = 0;

	memset(ret, 0, sizeof(*ret));
	if (target_mounts_read(&mounts) != 0)
		return 1;
	/* EACCES, ENOTCONN: there, but only the database can tell more */
	if (lstat(text, &st) == 0 || (errno != ENOENT && errno != ENOTDIR) || !strchr(text, ':'))
		found = resolve_existing(&mounts, text, ret);
	if (!found)
		found = resolve_cut(&mounts, text, ret);
	target_mounts_release(&mounts);
	return found ? 0 : say_unresolved(text);
}

void target_release(struct target *t)
{
	free(t->store);
	free(t->path);
	free(t->mountpoint);
	memset(t, 0, sizeof(*t));
}
