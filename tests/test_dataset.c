/* Data on its way to a step: rows and masks, the policies, packing, order, padding. */
#include "io_helpers.h"
#include "must.h"

#include "taper/model.h"
#include "train/batches.h"
#include "train/dataset.h"

#define MODEL TAPER_TEST_DATA "/../models/taper-wick"
#define END   4093 /* <|endoftext|> of that vocabulary */

static tp_tokenizer *tokenizer;

static void set_up(void) {
    make_directory();
    must(tp_tokenizer_load(MODEL, &tokenizer));
}

static void tear_down(void) {
    tp_tokenizer_release(tokenizer);
    remove_directory();
}

static tpi_dataset_options plain_options(void) {
    return (tpi_dataset_options){tokenizer, END, 64, TP_OVERLONG_ERROR, false, TP_LOSS_COMPLETION};
}

static tp_status load_text(tpi_dataset *data, const char *text, const tpi_dataset_options *options) {
    put_file(in_directory("d.jsonl"), text, strlen(text));
    return tpi_dataset_load(data, in_directory("d.jsonl"), options);
}

static size_t token_count(const char *text) {
    int32_t *ids;
    size_t count;
    must(tp_tokenizer_encode(tokenizer, text, strlen(text), false, &ids, &count));
    tp_ids_free(ids);
    return count;
}

TestSuite(dataset, .init = set_up, .fini = tear_down);

/* ---- rows ---- */

Test(dataset, trains_completion_and_end_but_not_the_prompt) {
    tpi_dataset data;
    tpi_dataset_options options = plain_options();
    size_t prompt = token_count("Say this"), completion = token_count(" again and again"),
           text = token_count("Alone");
    must(load_text(
        &data, "{\"prompt\": \"Say this\", \"completion\": \" again and again\"}\n\n{\"text\": \"Alone\"}\n",
        &options));
    cr_assert_eq(data.row_count, 2);
    const tpi_row *row = data.rows;
    cr_assert_eq((size_t)row->length, prompt + completion + 1);
    for (size_t i = 0; i < (size_t)row->length; i++)
        cr_expect_eq(data.trained[row->offset + i], i >= prompt, "token %zu", i);
    cr_expect_eq(data.tokens[row->offset + (size_t)row->length - 1], END);
    cr_assert_eq((size_t)row[1].length, text + 1);
    for (size_t i = 0; i < text + 1; i++) cr_expect_eq(data.trained[row[1].offset + i], 1);
    cr_expect_eq((size_t)data.trained_tokens, completion + 1 + text,
                 "the first token of a text has no prediction");
    tpi_dataset_free(&data);
}

/* In SentencePiece's style a text begins with a mark; a completion is the middle of one. */
Test(dataset, a_completion_goes_on_where_the_prompt_ends) {
    tpi_dataset data;
    int32_t *whole;
    size_t count;
    tp_tokenizer_release(tokenizer);
    must(tp_tokenizer_load(TAPER_TEST_DATA "/golden/tokenizer/pieces-first", &tokenizer));
    tpi_dataset_options options = plain_options();
    must(load_text(&data, "{\"prompt\": \"lamp,\", \"completion\": \"was lit\"}\n", &options));
    must(tp_tokenizer_encode(tokenizer, "lamp,was lit", 12, true, &whole, &count));
    cr_assert_eq((size_t)data.rows->length, count + 1);
    for (size_t i = 0; i < count; i++) cr_expect_eq(data.tokens[i], whole[i], "token %zu", i);
    tp_ids_free(whole);
    tpi_dataset_free(&data);
}

Test(dataset, loss_all_trains_the_prompt) {
    tpi_dataset data;
    tpi_dataset_options options = plain_options();
    options.loss = TP_LOSS_ALL;
    must(load_text(&data, "{\"prompt\": \"Say this\", \"completion\": \" again\"}", &options));
    cr_expect_eq(data.trained_tokens, data.rows[0].length - 1);
    tpi_dataset_free(&data);
}

Test(dataset, an_end_token_in_the_text_is_not_doubled) {
    tpi_dataset data;
    tpi_dataset_options options = plain_options();
    must(load_text(&data, "{\"text\": \"Alone<|endoftext|>\"}", &options));
    cr_expect_eq((size_t)data.rows[0].length, token_count("Alone") + 1);
    tpi_dataset_free(&data);
}

/* The prompt's is no end of the row, of which it trains nothing. */
Test(dataset, an_end_token_of_the_prompt_is_not_the_rows) {
    tpi_dataset data;
    tpi_dataset_options options = plain_options();
    must(load_text(&data, "{\"prompt\": \"Alone<|endoftext|>\", \"completion\": \"\"}", &options));
    cr_expect_eq(data.trained_tokens, 1);
    cr_expect_eq((size_t)data.rows[0].length, token_count("Alone") + 2);
    tpi_dataset_free(&data);
}

/* Loads that row with a template of <|im_start|> before a text, and `behind` behind it. */
static void load_behind_begin(tpi_dataset *data, const char *behind, const char *row) {
    const char *end =
        "\"special_tokens\": {\"<|im_start|>\": {\"id\": \"<|im_start|>\", \"ids\": [4094], \"tokens\": "
        "[\"<|im_start|>\"]}, \"<|im_end|>\": {\"id\": \"<|im_end|>\", \"ids\": [4095], \"tokens\": "
        "[\"<|im_end|>\"]}}}";
    char *text, *json;
    size_t size;
    must(tpi_file_read(MODEL "/tokenizer.json", 1 << 24, &text, &size));
    const char *key = strstr(text, "\"post_processor\":");
    cr_assert_not_null(key);
    const char *next = strstr(key, "\"decoder\":");
    cr_assert_not_null(next);
    json = tpi_asprintf(
        "%.*s\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": "
        "{\"id\": \"<|im_start|>\", \"type_id\": 0}}, {\"Sequence\": {\"id\": \"A\", \"type_id\": "
        "0}}%s], \"pair\": [], %s, %s",
        (int)(key - text), text, behind, end, next);
    put_file(in_directory("tokenizer.json"), json, strlen(json));
    tp_tokenizer *kept = tokenizer;
    must(tp_tokenizer_load(in_directory(""), &tokenizer));
    tpi_dataset_options options = plain_options();
    must(load_text(data, row, &options));
    tp_tokenizer_release(tokenizer);
    tokenizer = kept;
    tpi_free(text), tpi_free(json);
}

/* As generation has it: once, untrained, whether the text spells it out or not; and no suffix. */
Test(dataset, a_row_begins_with_the_templates_prefix) {
    static const char *const behind[] = {"",
                                         ", {\"SpecialToken\": {\"id\": \"<|im_end|>\", \"type_id\": 0}}"};
    static const char *const rows[] = {"{\"text\": \"Alone\"}", "{\"text\": \"<|im_start|>Alone\"}"};
    const size_t alone = token_count("Alone");
    for (int i = 0; i < 4; i++) {
        tpi_dataset data;
        load_behind_begin(&data, behind[i / 2], rows[i % 2]);
        cr_assert_eq((size_t)data.rows[0].length, 1 + alone + 1, "%d", i);
        cr_expect_eq(data.tokens[0], tp_tokenizer_id(tokenizer, "<|im_start|>"));
        cr_expect_eq(data.tokens[1 + alone], END);
        cr_expect_eq((size_t)data.trained_tokens, alone + 1);
        tpi_dataset_free(&data);
    }
}

Test(dataset, errors_name_file_and_row) {
    static const struct {
        const char *text;
        tp_status status;
        const char *part;
    } cases[] = {
        {"{\"text\": \"a b\"}\n{\"text\": \"c\n", TP_EFORMAT, "d.jsonl:2:"},
        {"{\"text\": \"a b\"}\n\n{\"txt\": \"c\"}\n", TP_EFORMAT, "row 3: expected either text, or prompt"},
        {"{\"prompt\": \"a\"}", TP_EFORMAT, "row 1: expected either text"},
        {"{\"text\": \"a\", \"prompt\": \"a\", \"completion\": \"b\"}", TP_EFORMAT, "row 1: expected either"},
        {"{\"text\": 7}", TP_EFORMAT, "row 1: text is not a string"},
        {"[1]", TP_EFORMAT, "row 1: expected an object"},
        {"{\"messages\": []}", TP_EUNSUPPORTED, "row 1: rows of messages need a chat template"},
        {"{\"text\": \"a b\"}\n{\"text\": \"\"}", TP_EFORMAT, "row 2: 0 trained tokens of 1"},
        {"", TP_EFORMAT, "d.jsonl: no rows"},
        {"\n\n", TP_EFORMAT, "d.jsonl: no rows"},
    };
    tpi_dataset_options options = plain_options();
    for (size_t i = 0; i < COUNT(cases); i++) {
        tpi_dataset data;
        expect_message(load_text(&data, cases[i].text, &options), cases[i].status, cases[i].part);
        cr_expect_null(data.tokens);
    }
    tpi_dataset data;
    expect_message(tpi_dataset_load(&data, in_directory("none.jsonl"), &options), TP_EIO, "none.jsonl");
}

Test(dataset, finds_the_splits) {
    char *path;
    put_file(in_directory("train.jsonl"), "", 0);
    must(tpi_dataset_path(directory, "train", &path));
    cr_expect_str_eq(path, in_directory("train.jsonl"));
    tpi_free(path);
    must(tpi_dataset_path(directory, "valid", &path));
    cr_expect_null(path);
    must(tpi_dataset_path("some.jsonl", "train", &path));
    cr_expect_str_eq(path, "some.jsonl");
    tpi_free(path);
    must(tpi_dataset_path("some.jsonl", "valid", &path));
    cr_expect_null(path);
}

Test(dataset, finds_the_end_token) {
    const int32_t stops[] = {7, 8};
    int32_t id;
    must(tpi_end_token(MODEL, tokenizer, stops, 2, &id));
    cr_expect_eq(id, END);
    must(tpi_end_token(directory, tokenizer, stops, 2, &id));
    cr_expect_eq(id, 7);
    expect_message(tpi_end_token(directory, tokenizer, NULL, 0, &id), TP_EFORMAT, "no end token");
    const char *config = "{\"eos_token\": {\"content\": \"<|im_end|>\"}}";
    put_file(in_directory("tokenizer_config.json"), config, strlen(config));
    must(tpi_end_token(directory, tokenizer, stops, 2, &id));
    cr_expect_eq(id, tp_tokenizer_id(tokenizer, "<|im_end|>"));
    put_file(in_directory("tokenizer_config.json"), "{\"eos_token\": \"nothing\"}", 24);
    expect_message(tpi_end_token(directory, tokenizer, stops, 2, &id), TP_EFORMAT, "'nothing' is no token");
}

/* ---- policies ---- */

#define LONG_ROW  "{\"text\": \"one two three four five six seven eight nine ten eleven twelve\"}\n"
#define SHORT_ROW "{\"text\": \"one two\"}\n"

Test(dataset, overlong_rows_follow_the_policy) {
    tpi_dataset data;
    tpi_dataset_options options = plain_options();
    options.max_seq = 5;
    int64_t length =
        (int64_t)token_count("one two three four five six seven eight nine ten eleven twelve") + 1;
    expect_message(load_text(&data, SHORT_ROW LONG_ROW, &options), TP_EFORMAT, "row 2: ");
    expect_message(load_text(&data, SHORT_ROW LONG_ROW, &options), TP_EFORMAT, "more than max_seq 5");

    options.overlong = TP_OVERLONG_DROP;
    must(load_text(&data, LONG_ROW SHORT_ROW LONG_ROW, &options));
    cr_expect(data.row_count == 1 && data.dropped == 2 && data.truncated == 0 && data.split == 0);
    tpi_dataset_free(&data);
    expect_message(load_text(&data, LONG_ROW, &options), TP_EFORMAT, "no rows are left: all 1");

    options.overlong = TP_OVERLONG_TRUNCATE;
    must(load_text(&data, LONG_ROW SHORT_ROW, &options));
    cr_expect(data.row_count == 2 && data.truncated == 1 && data.rows[0].length == 5 && data.longest == 5);
    cr_expect_eq(data.rows[1].offset, 5);
    tpi_dataset_free(&data);

    options.overlong = TP_OVERLONG_SPLIT;
    must(load_text(&data, LONG_ROW, &options));
    cr_expect_eq(data.split, 1);
    cr_expect_eq(data.trained_tokens, length - 1, "each token but the first is predicted once");
    cr_expect_leq(data.longest, 5);
    tpi_dataset_free(&data);
}

Test(dataset, truncation_that_takes_all_trained_tokens_is_an_error) {
    tpi_dataset data;
    tpi_dataset_options options = plain_options();
    options.max_seq = 3;
    options.overlong = TP_OVERLONG_TRUNCATE;
    expect_message(load_text(&data,
                             "{\"prompt\": \"one two three four five six\", \"completion\": \" seven\"}",
                             &options),
                   TP_EFORMAT, "row 1: 0 trained tokens of 3");
}

Test(dataset, packing_trains_every_token_but_the_first_once) {
    tpi_dataset data, packed;
    tpi_dataset_options options = plain_options();
    must(load_text(&data, LONG_ROW SHORT_ROW LONG_ROW LONG_ROW, &options));
    options.pack = true;
    options.max_seq = 8;
    must(load_text(&packed, LONG_ROW SHORT_ROW LONG_ROW LONG_ROW, &options));
    cr_assert_eq(packed.count, data.count);
    cr_expect_arr_eq(packed.tokens, data.tokens, data.count * sizeof *data.tokens);
    cr_expect_eq((size_t)packed.trained_tokens, data.count - 1);
    for (size_t i = 0; i < packed.row_count; i++) {
        cr_expect_eq(packed.rows[i].offset, i * 8);
        if (i + 1 < packed.row_count) cr_expect_eq(packed.rows[i].length, 9);
    }
    tpi_dataset_free(&data);
    tpi_dataset_free(&packed);
}

Test(dataset, hash_tells_data_apart) {
    static const char *const texts[] = {SHORT_ROW, SHORT_ROW SHORT_ROW, "{\"text\": \"one three\"}",
                                        "{\"prompt\": \"one\", \"completion\": \" two\"}"};
    tpi_dataset_options options = plain_options();
    uint64_t hashes[COUNT(texts)];
    for (size_t i = 0; i < COUNT(texts); i++) {
        tpi_dataset data;
        must(load_text(&data, texts[i], &options));
        hashes[i] = tpi_dataset_hash(&data);
        for (size_t j = 0; j < i; j++) cr_expect_neq(hashes[i], hashes[j], "%zu and %zu", i, j);
        tpi_dataset_free(&data);
    }
}

/* ---- order and batches ---- */

/* Rows of 2 + i % 17 tokens that count from i on; all are trained but the first third. */
static tpi_dataset counting_rows(size_t rows) {
    tpi_dataset data = {0};
    data.rows = tpi_calloc(rows, sizeof *data.rows);
    data.tokens = tpi_calloc(rows * 18, sizeof *data.tokens);
    data.trained = tpi_calloc(rows * 18, 1);
    for (size_t i = 0; i < rows; i++) {
        size_t length = 2 + i % 17;
        data.rows[i] = (tpi_row){data.count, (int64_t)length};
        for (size_t t = 0; t < length; t++) {
            data.tokens[data.count] = (int32_t)(i + t);
            data.trained[data.count++] = t > length / 3;
        }
    }
    data.row_count = rows;
    data.longest = 18;
    return data;
}

Test(order, every_epoch_is_a_permutation_and_repeats_from_the_seed) {
    tpi_dataset data = counting_rows(203);
    tpi_order order, again, other;
    must(tpi_order_create(&order, &data, 5, 8));
    must(tpi_order_create(&again, &data, 5, 8));
    must(tpi_order_create(&other, &data, 6, 8));
    cr_expect_eq(tpi_order_steps(&order), 26);
    int same_as_other = 0;
    for (int epoch = 0; epoch < 3; epoch++) {
        int seen[203] = {0};
        for (int step = 0; step < 26; step++) {
            const uint32_t *rows, *rows_again, *rows_other;
            int64_t count, unused;
            must(tpi_order_next(&order, &rows, &count));
            must(tpi_order_seek(&again, epoch, step));
            must(tpi_order_next(&again, &rows_again, &unused));
            must(tpi_order_next(&other, &rows_other, &unused));
            cr_expect_eq(count, step == 25 ? 3 : 8);
            cr_expect_arr_eq(rows, rows_again, (size_t)count * sizeof *rows);
            same_as_other += memcmp(rows, rows_other, (size_t)count * sizeof *rows) == 0;
            for (int64_t i = 0; i < count; i++) seen[rows[i]]++;
        }
        for (int i = 0; i < 203; i++) cr_expect_eq(seen[i], 1, "epoch %d row %d", epoch, i);
    }
    cr_expect_lt(same_as_other, 5);
    cr_expect_eq(tpi_order_seek(&order, 0, 27), TP_EINVAL);
    tpi_order_free(&order);
    tpi_order_free(&again);
    tpi_order_free(&other);
    tpi_dataset_free(&data);
}

Test(order, rows_of_a_step_are_of_like_length) {
    tpi_dataset data = counting_rows(512);
    tpi_order order;
    must(tpi_order_create(&order, &data, 1, 8));
    int64_t spread = 0;
    for (int step = 0; step < 64; step++) {
        const uint32_t *rows;
        int64_t count, low = 99, high = 0;
        must(tpi_order_next(&order, &rows, &count));
        for (int64_t i = 0; i < count; i++) {
            int64_t length = data.rows[rows[i]].length;
            low = length < low ? length : low;
            high = length > high ? length : high;
        }
        spread += high - low;
    }
    cr_expect_lt(spread, 64 * 6, "at random it is about 14 a step");
    tpi_order_free(&order);
    tpi_dataset_free(&data);
}

/* A short last step is of any rows, too: in a hundred epochs of 30 rows, of the longest ones a fifth. */
Test(order, a_short_last_step_is_not_of_the_longest_rows) {
    tpi_dataset data = counting_rows(17);
    tpi_order order;
    int longest = 0;
    must(tpi_order_create(&order, &data, 1, 7));
    for (int epoch = 0; epoch < 100; epoch++) {
        const uint32_t *rows;
        int64_t count;
        must(tpi_order_seek(&order, epoch, 2));
        must(tpi_order_next(&order, &rows, &count));
        cr_assert_eq(count, 3);
        for (int64_t i = 0; i < count; i++) longest += data.rows[rows[i]].length > 15;
    }
    cr_expect(longest > 20 && longest < 100, "%d of 300, expected about 53", longest);
    tpi_order_free(&order);
    tpi_dataset_free(&data);
}

/* What a batch says of row b, position t: its target, by either form. */
static int32_t target_at(const tpi_batch *batch, int64_t b, int64_t t) {
    if (!batch->picked) return batch->targets[b * batch->length + t];
    for (int64_t i = 0; i < batch->picked; i++)
        if (batch->targets[i] != TPI_IGNORE && batch->pick[i] == b * batch->length + t)
            return batch->targets[i];
    return TPI_IGNORE;
}

Test(batches, predict_the_next_trained_token_and_ignore_padding) {
    tpi_dataset data = counting_rows(40);
    const uint32_t rows[] = {16, 3, 38};
    tpi_batch batch;
    must(tpi_batch_make(&batch, &data, rows, 3));
    cr_assert(batch.rows == 3 && batch.length == 32, "length is rounded up");
    cr_assert(batch.picked > 0 && batch.picked % 32 == 0);
    int64_t tokens = 0;
    for (int64_t b = 0; b < 3; b++) {
        const tpi_row *row = &data.rows[rows[b]];
        for (int64_t t = 0; t < batch.length; t++) {
            bool inside = t + 1 < row->length;
            int32_t id = inside ? (int32_t)(rows[b] + t) : 0;
            bool trained = inside && data.trained[row->offset + (size_t)t + 1];
            cr_expect_eq(batch.ids[b * batch.length + t], id);
            cr_expect_eq(target_at(&batch, b, t), trained ? id + 1 : TPI_IGNORE, "row %d position %d", (int)b,
                         (int)t);
            tokens += trained;
        }
    }
    cr_expect_eq(batch.tokens, tokens);
    tpi_batch_free(&batch);

    must(tpi_batch_make_full(&batch, 2, 33));
    cr_expect(batch.length == 32 && batch.picked == 0 && batch.tokens == 64);
    tpi_batch_free(&batch);
    cr_expect_eq(tpi_batch_make_full(&batch, 1 << 20, 1 << 20), TP_EINVAL);
    tpi_dataset_free(&data);
}

/* ---- faults ---- */

static tp_status prepare(void) {
    tpi_dataset data;
    tpi_order order;
    const uint32_t *rows;
    int64_t count;
    tpi_batch batch = {0};
    tpi_dataset_options options = plain_options();
    TPI_TRY(tpi_dataset_load(&data, in_directory("d.jsonl"), &options));
    tp_status status = tpi_order_create(&order, &data, 1, 2);
    if (status == TP_OK) {
        status = tpi_order_next(&order, &rows, &count);
        if (status == TP_OK) status = tpi_batch_make(&batch, &data, rows, count);
        tpi_batch_free(&batch);
        tpi_order_free(&order);
    }
    tpi_dataset_free(&data);
    return status;
}

Test(dataset, allocations_may_fail) {
    put_file(in_directory("d.jsonl"), LONG_ROW SHORT_ROW LONG_ROW, 2 * strlen(LONG_ROW) + strlen(SHORT_ROW));
    sweep(prepare);
}
