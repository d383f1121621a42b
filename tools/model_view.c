#include "tools/model_view.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "lib/dtype.h"
#include "lib/npy.h"
#include "lib/safetensors.h"
#include "tools/target.h"
#include "tools/ui.h"

#define TENSORS ".tensors"
#define ERROR_XATTR MODEL_VIEW_XATTR "error"

/* Bytes of a value that are asked for at first; most are shorter. */
#define VALUE_ROOM 256

/* How often a listing begins anew when the model is saved in the middle of it. */
#define ATTEMPTS 8

#define DRIVER_GONE "its driver is gone: `weightfs umount DIR`, and mount the store again"

/* ---- the model ---- */

/* 1: it is; 0: it is not; -1: nobody can say, which is printed. */
static int is_in_mount(const char *path)
{
	struct target_mounts mounts;
	const struct target_mount *mount;
	int ret = -1;

	if (target_mounts_read(&mounts) == 0) {
		mount = target_mounts_of_path(&mounts, path);
		ret = mount && strcmp(mount->fstype, TARGET_FSTYPE) == 0;
	}
	target_mounts_release(&mounts);
	return ret;
}

static int check_directory(const char *text, const char *path)
{
	struct stat st;
	int found;

	if (stat(text, &st) < 0)
		return ui_error(
			errno == ENOTCONN ? DRIVER_GONE : NULL, "%s: %s", text, strerror(errno));
	found = is_in_mount(path);
	if (found < 0)
		return 1;
	if (!found)
		return ui_error("name the model's directory in a mount; `weightfs mount STORE DIR` "
				"makes one",
			"%s is in no mount of weightfs", text);
	if (!S_ISDIR(st.st_mode))
		return ui_error("name the directory that it is in", "%s is no directory", text);
	return 0;
}

static int check_views(const struct model_view *v)
{
	struct stat st;

	if (stat(v->tensors, &st) == 0)
		return 0;
	if (errno != ENOENT && errno != ENOTDIR)
		return ui_error(NULL, "%s: %s", v->tensors, strerror(errno));
	return ui_error(
		"is it mounted with -o views=off, or by an older weightfs? Views have no views "
		"themselves",
		"%s has no view of its tensors (%s)", v->dir, strrchr(v->tensors, '/') + 1);
}

int model_view_open(const char *path, const char *variant, struct model_view *ret)
{
	int status;

	memset(ret, 0, sizeof(*ret));
	if (variant && (!*variant || strchr(variant, '/'))) {
		ui_error("it is what stands behind the first dot: fp16 in model.fp16.safetensors",
			"'%s' is no variant", variant);
		return 2;
	}
	ret->dir = target_absolute(path);
	ret->tensors = ui_format("%s/" TENSORS "%s%s", strcmp(ret->dir, "/") ? ret->dir : "",
		variant ? "@" : "", variant ? variant : "");
	status = check_directory(path, ret->dir);
	return status ? status : check_views(ret);
}

void model_view_release(struct model_view *v)
{
	free(v->dir);
	free(v->tensors);
	memset(v, 0, sizeof(*v));
}

/* ---- extended attributes ---- */

/*
 * The value of an attribute, with a NUL behind it; NULL where there is none, or it is longer
 * than the kernel hands out. 0 or -errno.
 */
static int read_value(int fd, const char *name, char **ret)
{
	char *value = ui_alloc(VALUE_ROOM + 1);
	ssize_t n = fgetxattr(fd, name, value, VALUE_ROOM);
	int err;

	if (n < 0 && errno == ERANGE) {
		free(value);
		value = ui_alloc(XATTR_SIZE_MAX + 1);
		n = fgetxattr(fd, name, value, XATTR_SIZE_MAX);
	}
	err = n < 0 ? -errno : 0;
	if (err) {
		free(value);
		value = NULL;
	}
	*ret = value;
	return err == -ENODATA || err == -E2BIG ? 0 : err;
}

char *model_view_errors(const struct model_view *v)
{
	WFS_AUTO_CLOSE int fd = open(v->tensors, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	char *text = NULL;

	if (fd >= 0 && read_value(fd, ERROR_XATTR, &text) < 0)
		return NULL;
	return text;
}

/* A file's name may be part of another line, or hold line ends itself; a reason is one line. */
char *model_view_reason(const struct model_view *v, const char *path)
{
	WFS_AUTO_FREE char *all = model_view_errors(v);
	WFS_AUTO_FREE char *start = ui_format("%s: ", strrchr(path, '/') + 1);

	for (const char *at = all; at && (at = strstr(at, start)); at++) {
		const char *reason = at + strlen(start);

		if (at == all || at[-1] == '\n')
			return ui_format("%.*s", (int)strcspn(reason, "\n"), reason);
	}
	return NULL;
}

/* ---- names ---- */

static const char *suffix_of(enum model_view_form form)
{
	return form == MODEL_VIEW_NPY ? ".npy" : ".safetensors";
}

static bool is_plain(char c)
{
	return c != '/' && c != '\0' && c != '%';
}

static bool fits(const char *name, size_t len, enum model_view_form form)
{
	size_t n = strlen(suffix_of(form));

	for (size_t i = 0; i < len && n <= NAME_MAX; i++)
		n += is_plain(name[i]) ? 1 : 3;
	return n <= NAME_MAX;
}

char *model_view_file(
	const struct model_view *v, const char *tensor, size_t len, enum model_view_form form)
{
	char name[NAME_MAX + 1];
	size_t n = 0;

	if (!fits(tensor, len, form))
		return NULL;
	for (size_t i = 0; i < len; i++) {
		if (is_plain(tensor[i]))
			name[n++] = tensor[i];
		else
			n += (size_t)sprintf(name + n, "%%%02X", (unsigned char)tensor[i]);
	}
	return ui_format("%s/%.*s%s", v->tensors, (int)n, name, suffix_of(form));
}

int model_view_too_long(const char *tensor, const char *hint)
{
	return ui_error(hint, "%.40s...: a name of %zu bytes is too long for a file's name", tensor,
		strlen(tensor));
}

/* Bytes of the file name at s that stand for one byte of a tensor's name, which is *ret. */
static size_t decode_one(const char *s, size_t len, char *ret)
{
	static const struct {
		char text[4], byte;
	} escapes[] = {{"%2F", '/'}, {"%2f", '/'}, {"%25", '%'}, {"%00", '\0'}};

	*ret = s[0];
	for (size_t i = 0; len >= 3 && i < WFS_ARRAY_SIZE(escapes); i++) {
		if (memcmp(s, escapes[i].text, 3) == 0) {
			*ret = escapes[i].byte;
			return 3;
		}
	}
	return 1;
}

/* False: this is no tensor's file. */
static bool decode(const char *file, struct model_tensor *ret)
{
	const char *suffix = strrchr(file, '.');
	size_t len = suffix ? (size_t)(suffix - file) : 0, n = 0;

	if (!suffix || (strcmp(suffix, ".npy") != 0 && strcmp(suffix, ".safetensors") != 0))
		return false;
	ret->name = ui_alloc(len + 1);
	for (size_t i = 0; i < len; n++)
		i += decode_one(file + i, len - i, &ret->name[n]);
	ret->name_len = n;
	return true;
}

/* ---- one tensor ---- */

static void tensor_release(struct model_tensor *t)
{
	free(t->name);
	free(t->dtype);
	free(t->shard);
	free(t->digest);
	free(t->shape);
}

static void add_tensor(struct model_tensors *l, const struct model_tensor *t)
{
	UI_ARRAY_ROOM(l->list, l->n, l->room);
	l->list[l->n++] = *t;
}

/* "[2, 3]" as numbers. */
static void take_shape(struct model_tensor *t, const char *text)
{
	size_t room = 1;

	for (const char *p = text; *p; p++)
		room += *p == ',';
	t->shape = ui_alloc(room * sizeof(*t->shape));
	for (const char *p = text; *p && t->ndim < room;) {
		char *end;

		if (*p < '0' || *p > '9') {
			p++;
			continue;
		}
		t->shape[t->ndim++] = strtoull(p, &end, 10);
		p = end;
	}
}

/* UINT64_MAX where dtype or shape is not known, or is of no use. */
static uint64_t count_bytes(const struct model_tensor *t)
{
	enum wfs_dtype dtype;
	uint64_t bits;

	if (!t->dtype || !t->shape || !wfs_dtype_find(t->dtype, strlen(t->dtype), &dtype))
		return UINT64_MAX;
	for (size_t i = 0; i < t->ndim; i++)
		if (t->shape[i] == 0)
			return 0;
	bits = wfs_dtype_bits(dtype);
	for (size_t i = 0; i < t->ndim; i++)
		if (wfs_mul_overflows(bits, t->shape[i], &bits))
			return UINT64_MAX;
	return bits / 8;
}

static int read_values(int fd, struct model_tensor *t)
{
	WFS_AUTO_FREE char *shape = NULL;
	int ret = read_value(fd, MODEL_VIEW_XATTR "dtype", &t->dtype);

	if (!ret)
		ret = read_value(fd, MODEL_VIEW_XATTR "shape", &shape);
	if (!ret)
		ret = read_value(fd, MODEL_VIEW_XATTR "shard", &t->shard);
	if (!ret)
		ret = read_value(fd, MODEL_VIEW_XATTR "digest", &t->digest);
	if (shape)
		take_shape(t, shape);
	t->bytes = count_bytes(t);
	return ret;
}

static int read_tensor(int dir, const char *file, struct model_tensors *l)
{
	struct model_tensor t = {.name = NULL};
	WFS_AUTO_CLOSE int fd = -1;
	int ret;

	if (!decode(file, &t))
		return 0;
	fd = openat(dir, file, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	ret = fd < 0 ? -errno : read_values(fd, &t);
	if (ret)
		tensor_release(&t);
	else
		add_tensor(l, &t);
	return ret;
}

/* ---- those that are not listed ---- */

static bool is_listed(const struct wfs_safetensors_tensor *t)
{
	bool npy = wfs_npy_has_dtype(t->dtype) && t->ndim <= WFS_NPY_MAX_DIMS;

	return fits(t->name, t->name_len, npy ? MODEL_VIEW_NPY : MODEL_VIEW_SAFETENSORS);
}

static void add_unlisted(
	const struct wfs_safetensors *st, const char *shard, struct model_tensors *l)
{
	for (size_t i = 0; i < st->n_tensors; i++) {
		const struct wfs_safetensors_tensor *from = &st->tensors[i];
		struct model_tensor t = {.name_len = from->name_len, .ndim = from->ndim};

		if (is_listed(from))
			continue;
		t.name = ui_alloc(t.name_len + 1);
		memcpy(t.name, from->name, t.name_len);
		t.dtype = ui_format("%s", wfs_dtype_name(from->dtype));
		t.shard = ui_format("%s", shard);
		t.shape = ui_alloc(t.ndim * sizeof(*t.shape));
		wfs_safetensors_shape(st, from, t.shape, t.ndim);
		t.bytes = from->end - from->begin;
		add_tensor(l, &t);
	}
}

/* The first bytes of a file; how many they are. */
static size_t read_start(int fd, uint8_t *buf, size_t len)
{
	size_t n = 0;
	ssize_t got;

	while (n < len && (got = pread(fd, buf + n, len - n, (off_t)n)) > 0)
		n += (size_t)got;
	return n;
}

/* A shard that cannot be read or is none any more has nothing to add. */
static void read_shard(const struct model_view *v, const char *shard, struct model_tensors *l)
{
	WFS_AUTO_FREE char *path = ui_format("%s/%s", v->dir, shard);
	WFS_AUTO_CLOSE int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	WFS_AUTO_FREE uint8_t *header = NULL;
	uint8_t head[WFS_SAFETENSORS_PREFIX];
	struct wfs_safetensors st;
	struct stat info;
	uint64_t need;

	if (fd < 0 || fstat(fd, &info) < 0 || read_start(fd, head, sizeof(head)) < sizeof(head))
		return;
	need = wfs_safetensors_need(head, (uint64_t)info.st_size);
	header = ui_alloc(need);
	if (read_start(fd, header, need) < need ||
		wfs_safetensors_parse(header, (uint64_t)info.st_size, &st, NULL) < 0)
		return;
	if (st.verdict == WFS_SAFETENSORS_VALID)
		add_unlisted(&st, shard, l);
	wfs_safetensors_release(&st);
}

/* Each shard once: the listing goes shard by shard. */
static void read_shards(const struct model_view *v, struct model_tensors *l)
{
	size_t n = l->n;
	WFS_AUTO_FREE char *last = NULL;

	for (size_t i = 0; i < n; i++) {
		const char *shard = l->list[i].shard;

		if (!shard || (last && strcmp(last, shard) == 0))
			continue;
		read_shard(v, shard, l);
		free(last);
		last = ui_format("%s", shard);
	}
}

/* ---- all ---- */

/* -ENOENT, -ESTALE: the model is another by now. *ret_file: what failed, or NULL. */
static int list_once(const struct model_view *v, struct model_tensors *l, char **ret_file)
{
	DIR *dir = opendir(v->tensors);
	const struct dirent *e;
	int ret = 0;

	*ret_file = NULL;
	if (!dir)
		return -errno;
	while (!ret && (errno = 0, e = readdir(dir))) {
		ret = read_tensor(dirfd(dir), e->d_name, l);
		if (ret)
			*ret_file = ui_format("%s", e->d_name);
	}
	if (!ret)
		ret = -errno;
	closedir(dir);
	return ret;
}

int model_tensors_read(const struct model_view *v, struct model_tensors *ret)
{
	WFS_AUTO_FREE char *file = NULL;
	int err = -ESTALE;

	memset(ret, 0, sizeof(*ret));
	for (unsigned i = 0; i < ATTEMPTS && (err == -ENOENT || err == -ESTALE); i++) {
		model_tensors_release(ret);
		free(file);
		err = list_once(v, ret, &file);
	}
	if (!err)
		read_shards(v, ret);
	else if (err == -ENOENT || err == -ESTALE)
		ui_error("try again when nobody saves it", "%s: the model changes while it is read",
			v->tensors);
	else
		ui_error(NULL, "%s%s%s: %s", v->tensors, file ? "/" : "", file ? file : "",
			strerror(-err));
	return err ? 1 : 0;
}

void model_tensors_release(struct model_tensors *t)
{
	for (size_t i = 0; i < t->n; i++)
		tensor_release(&t->list[i]);
	free(t->list);
	memset(t, 0, sizeof(*t));
}

void model_tensors_notes(const struct model_view *v, const struct model_tensors *t)
{
	WFS_AUTO_FREE char *errors = model_view_errors(v);
	char *rest = errors, *line;

	while ((line = strsep(&rest, "\n")))
		ui_error(NULL, "%s: %s", v->tensors, line);
	if (t->n == 0)
		ui_error(NULL, "%s: no shard here has tensors", v->tensors);
}
