#include "lib/db_uri.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

char *wfs_db_immutable_uri(const char *path)
{
	char *uri = malloc(3 * strlen(path) + sizeof("file:?immutable=1"));
	char *p = uri;

	if (!uri)
		return NULL;
	p += sprintf(p, "file:");
	for (; *path; path++)
		p += sprintf(p, strchr("%?#", *path) ? "%%%02x" : "%c", *path);
	sprintf(p, "?immutable=1");
	return uri;
}
