#include "lib/array.h"

#include <errno.h>

#define FIRST_ROOM 16

int wfs_array_room(void *ret_list, size_t size, size_t n, size_t more, size_t *room)
{
	size_t need, want;
	void *list, *grown;

	if (__builtin_add_overflow(n, more, &need))
		return -ENOMEM;
	if (need <= *room)
		return 0;
	if (__builtin_mul_overflow(*room, 2, &want))
		return -ENOMEM;
	want = WFS_MAX(want, WFS_MAX(need, FIRST_ROOM));
	memcpy(&list, ret_list, sizeof(list));
	grown = reallocarray(list, want, size);
	if (!grown)
		return -ENOMEM;
	memcpy(ret_list, &grown, sizeof(grown));
	*room = want;
	/* cppcheck-suppress memleak ; it is the caller's now */
	return 0;
}
