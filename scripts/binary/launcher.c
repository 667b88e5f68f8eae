/* The start of the one-file `lsml`: unpack what is appended to this program, once, and run it.
 *
 * The file is this program, a zstd-compressed tar archive, and a trailer of TRAILER_BYTES that names the archive's size and
 * digest. The archive holds a Python with lsml in it. It is unpacked into the user's cache, in a folder named by the digest,
 * so that another build never meets the files of this one. A folder appears by rename, when it is complete: two first
 * starts at once both succeed, and a killed one leaves nothing that is taken for a whole. Where no cache can be written, a
 * folder of the temporary directory that belongs to this user alone takes its place.
 *
 * The archive is plain ustar as `build` writes it: folders, files, and no links.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#define MAGIC "lsml-binary-1\n"
#define DIGEST_CHARS 64
#define TRAILER_BYTES 128 /* magic, size of the archive in decimal, a space, its SHA-256 in hex; zeros up to the end */
#define BLOCK 512         /* of a tar archive */
#define PATH_BYTES 4096

static char unfinished[PATH_BYTES]; /* a folder that is being unpacked, "" if there is none */
static volatile sig_atomic_t received_signal;

static void note_signal(int number) { received_signal = number; }

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *place) {
    (void)status, (void)kind, (void)place;
    return remove(path);
}

static void remove_tree(const char *path) { nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS); }

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("lsml: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    if (unfinished[0] != '\0') remove_tree(unfinished);
    exit(1);
}

static void end_by_signal(void) {
    remove_tree(unfinished);
    signal(received_signal, SIG_DFL);
    raise(received_signal);
}

/* Join into a buffer of PATH_BYTES; end the program rather than cut a path off. */
static void join(char *path, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(path, PATH_BYTES, format, arguments);
    va_end(arguments);
    if (length < 0 || length >= PATH_BYTES) fail("A path is longer than %d bytes.", PATH_BYTES);
}

/* ---- folders */

/* Return whether a path is a real folder that belongs to this user and that nobody else may write. */
static int is_own_folder(const char *path) {
    struct stat status;
    return lstat(path, &status) == 0 && S_ISDIR(status.st_mode) && status.st_uid == geteuid() &&
           !(status.st_mode & (S_IWGRP | S_IWOTH));
}

/* Make a folder with the folders above it. Return whether it is there and belongs to this user alone. */
static int make_own_folder(const char *path) {
    char part[PATH_BYTES];
    join(part, "%s", path);
    for (char *slash = part + 1; (slash = strchr(slash, '/')) != NULL; slash++) {
        *slash = '\0';
        mkdir(part, 0700);
        *slash = '/';
    }
    mkdir(part, 0700);
    return is_own_folder(path) && access(path, W_OK | X_OK) == 0;
}

static int is_unpacked(const char *folder) {
    char python[PATH_BYTES];
    join(python, "%s/bin/python3", folder);
    return is_own_folder(folder) && access(python, X_OK) == 0;
}

/* ---- the archive */

typedef struct {
    FILE *file;
    uint64_t left; /* compressed bytes that were not read yet */
    ZSTD_DStream *stream;
    ZSTD_inBuffer input;
    unsigned char *input_bytes;
    size_t input_size;
} Archive;

/* Fill a buffer with unpacked bytes. Return how many there were: fewer than asked for only at the end. */
static size_t read_archive(Archive *archive, void *buffer, size_t size) {
    ZSTD_outBuffer output = {buffer, size, 0};
    while (output.pos < size) {
        if (received_signal) end_by_signal();
        if (archive->input.pos == archive->input.size && archive->left > 0) {
            size_t wanted = archive->left < archive->input_size ? (size_t)archive->left : archive->input_size;
            size_t count = fread(archive->input_bytes, 1, wanted, archive->file);
            if (count == 0) fail("This file is damaged: it ends too early. Download it again.");
            archive->left -= count;
            archive->input = (ZSTD_inBuffer){archive->input_bytes, count, 0};
        }
        size_t before = output.pos;
        size_t result = ZSTD_decompressStream(archive->stream, &output, &archive->input);
        if (ZSTD_isError(result)) fail("This file is damaged: %s. Download it again.", ZSTD_getErrorName(result));
        if (output.pos == before && archive->input.pos == archive->input.size && archive->left == 0) break;
    }
    return output.pos;
}

static void read_all(Archive *archive, void *buffer, size_t size) {
    if (read_archive(archive, buffer, size) != size) fail("This file is damaged: its archive is cut. Download it again.");
}

static uint64_t parse_octal(const char *field, size_t size) {
    uint64_t value = 0;
    for (size_t i = 0; i < size && field[i] >= '0' && field[i] <= '7'; i++) value = value * 8 + (uint64_t)(field[i] - '0');
    return value;
}

static void write_file(Archive *archive, const char *path, uint64_t size, mode_t mode) {
    static unsigned char buffer[1 << 20];
    int file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode & 0100 ? 0755 : 0644);
    if (file < 0) fail("%s cannot be written: %s.", path, strerror(errno));
    uint64_t padded = (size + BLOCK - 1) / BLOCK * BLOCK;
    while (padded > 0) {
        size_t count = padded < sizeof buffer ? (size_t)padded : sizeof buffer;
        read_all(archive, buffer, count);
        size_t content = size < count ? (size_t)size : count;
        for (size_t done = 0; done < content;) {
            ssize_t written = write(file, buffer + done, content - done);
            if (written < 0 && errno == EINTR) continue;
            if (written <= 0) fail("%s cannot be written: %s.", path, strerror(errno));
            done += (size_t)written;
        }
        size -= content;
        padded -= count;
    }
    if (close(file) != 0) fail("%s cannot be written: %s.", path, strerror(errno));
}

static void unpack(Archive *archive, const char *folder) {
    char header[BLOCK], name[257], path[PATH_BYTES];
    for (;;) {
        read_all(archive, header, BLOCK);
        if (header[0] == '\0') break; /* the blocks of zeros at the end */
        if (header[345] != '\0')
            snprintf(name, sizeof name, "%.155s/%.100s", header + 345, header);
        else
            snprintf(name, sizeof name, "%.100s", header);
        if (name[0] == '/' || strstr(name, "..") != NULL) fail("This file is damaged: it holds the path %s.", name);
        join(path, "%s/%s", folder, name);
        if (header[156] == '5') {
            if (mkdir(path, 0755) != 0 && errno != EEXIST) fail("%s cannot be made: %s.", path, strerror(errno));
        } else if (header[156] == '0') {
            write_file(archive, path, parse_octal(header + 124, 12), (mode_t)parse_octal(header + 100, 8));
        } else {
            fail("This file is damaged: %s is neither a file nor a folder.", name);
        }
    }
    while (read_archive(archive, header, BLOCK) > 0) continue; /* the checksum comes last */
}

/* ---- the program */

static FILE *open_own_file(char *own_path, uint64_t *size, char *digest) {
    ssize_t length = readlink("/proc/self/exe", own_path, PATH_BYTES - 1);
    if (length <= 0) fail("/proc is not mounted, and lsml finds its own file there.");
    own_path[length] = '\0';
    FILE *file = fopen("/proc/self/exe", "rbe");
    if (file == NULL) fail("%s cannot be read: %s.", own_path, strerror(errno));
    char trailer[TRAILER_BYTES + 1] = {0};
    if (fseeko(file, -TRAILER_BYTES, SEEK_END) != 0 || fread(trailer, 1, TRAILER_BYTES, file) != TRAILER_BYTES ||
        strncmp(trailer, MAGIC, strlen(MAGIC)) != 0)
        fail("%s is not complete. Download it again.", own_path);
    unsigned long long bytes = 0;
    if (sscanf(trailer + strlen(MAGIC), "%llu %64[0-9a-f]", &bytes, digest) != 2 || strlen(digest) != DIGEST_CHARS)
        fail("%s is not complete. Download it again.", own_path);
    *size = bytes;
    if (fseeko(file, -(off_t)(bytes + TRAILER_BYTES), SEEK_END) != 0) fail("%s is not complete. Download it again.", own_path);
    return file;
}

/* Return whether the files are in `parent`/`digest`, which is set as `folder`: from an earlier start, or from now on. */
static int prepare(const char *parent, const char *digest, char *folder) {
    join(folder, "%s/%s", parent, digest);
    if (is_unpacked(folder)) return 1;
    if (!make_own_folder(parent)) return 0;
    char temporary[PATH_BYTES];
    join(temporary, "%s/.unpacking-XXXXXX", parent);
    if (mkdtemp(temporary) == NULL) return 0;
    join(unfinished, "%s", temporary);
    if (isatty(STDERR_FILENO)) fprintf(stderr, "lsml: unpacking into %s, once\n", folder);

    uint64_t size;
    char own_path[PATH_BYTES], own_digest[DIGEST_CHARS + 1];
    Archive archive = {.file = open_own_file(own_path, &size, own_digest), .left = size, .stream = ZSTD_createDStream()};
    archive.input_size = ZSTD_DStreamInSize();
    archive.input_bytes = malloc(archive.input_size);
    if (archive.stream == NULL || archive.input_bytes == NULL) fail("There is no memory left.");
    const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    void (*handlers[3])(int);
    for (int i = 0; i < 3; i++) {
        handlers[i] = signal(signals[i], note_signal);
        if (handlers[i] == SIG_IGN) signal(signals[i], SIG_IGN); /* as `nohup` wants it */
    }
    unpack(&archive, temporary);
    if (received_signal) end_by_signal();
    for (int i = 0; i < 3; i++) signal(signals[i], handlers[i]);
    fclose(archive.file);
    chmod(temporary, 0755);
    int failure = rename(temporary, folder) == 0 ? 0 : errno;
    if (failure != 0) remove_tree(temporary); /* another start was faster */
    unfinished[0] = '\0';
    if (!is_unpacked(folder)) fail("%s cannot be made: %s.", folder, strerror(failure));
    return 1;
}

int main(int count, char **arguments) {
    char own_path[PATH_BYTES], folder[PATH_BYTES], parent[PATH_BYTES], digest[DIGEST_CHARS + 1];
    uint64_t size;
    fclose(open_own_file(own_path, &size, digest));

    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME"), *temporary = getenv("TMPDIR");
    int is_ready = 0;
    if (cache != NULL && cache[0] == '/') {
        join(parent, "%s/lsml/binary", cache);
        is_ready = prepare(parent, digest, folder);
    } else if (home != NULL && home[0] == '/') {
        join(parent, "%s/.cache/lsml/binary", home);
        is_ready = prepare(parent, digest, folder);
    }
    if (!is_ready) {
        join(parent, "%s/lsml-binary-%u", temporary != NULL && temporary[0] == '/' ? temporary : "/tmp", geteuid());
        if (!prepare(parent, digest, folder))
            fail("No folder can be written to unpack into; name one with XDG_CACHE_HOME.");
    }

    char python[PATH_BYTES], script[PATH_BYTES];
    join(python, "%s/bin/python3", folder);
    join(script, "%s/bin/lsml", folder);
    /* The Python of this file must not read what belongs to another one. */
    unsetenv("PYTHONHOME");
    unsetenv("PYTHONPATH");
    setenv("PYTHONNOUSERSITE", "1", 1);
    setenv("LSML_BINARY", own_path, 1);
    char **command = calloc((size_t)count + 3, sizeof *command);
    if (command == NULL) fail("There is no memory left.");
    command[0] = python;
    command[1] = "-P"; /* never import from the working folder */
    command[2] = script;
    for (int i = 1; i < count; i++) command[i + 2] = arguments[i];
    execv(python, command);
    fail("%s cannot be started: %s.", python, strerror(errno));
}
